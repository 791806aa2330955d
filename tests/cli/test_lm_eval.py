"""`jaxdiff lm-eval`: local tasks, beside what the library says of the same requests. Skipped without lm-eval."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxdiff
from jaxdiff import policies, stoppers
from jaxdiff.cli.lm_eval import register
from jaxdiff.cli.main import main
from jaxdiff.decode.batches import request_keys
from jaxdiff.tasks import human_eval, sandbox

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
metadata: {{version: 1.0}}
"""
TEXTS = """doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e"], do_sample: false, max_gen_toks: 16}
metric_list: [{metric: exact_match}]
"""
CHOICE = """doc_to_text: "{{question}}"
doc_to_choice: "{{['12', answer]}}"
doc_to_target: 1
metric_list: [{metric: acc}]
"""
ROLLING = """doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
ASKED = ("--policy", "threshold:tau=0.1", "--block-length", 8, "--samples", 4, "--seed", 3)
QUESTIONS = ["What is 1 + 2?", "2 + 2 =", "How many are left of 12 apples?"]


def test_without_it_the_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ran = run("lm-eval", "--tasks", "gsm8k")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("pip install 'jaxdiff[lm-eval]'\n")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of three tasks of three documents, which ask for texts, for choices and for a text's likelihood."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "tasks"
    home.mkdir()
    documents = [{"question": question, "answer": f"3{i}"} for i, question in enumerate(QUESTIONS)]
    (home / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, kind, body in (
        ("texts", "generate_until", TEXTS),
        ("choice", "multiple_choice", CHOICE),
        ("rolling", "loglikelihood_rolling", ROLLING),
    ):
        (home / f"{name}.yaml").write_text(TASK.format(name=name, data=home / "data.jsonl", kind=kind) + body)
    return home


@pytest.mark.filterwarnings("ignore")
def test_results_are_those_of_the_library(run, folder, checkpoint, tasks, tmp_path):
    out = tmp_path / "out.json"
    asked = ("lm-eval", "--model", folder, "--include-path", tasks, *ASKED, "--out", out)
    assert run(*asked, "--tasks", "texts,choice,rolling", "--json").code == 0
    told = json.loads(out.read_text())
    rows, tokenizer = told["requests"], checkpoint.tokenizer

    decoder = jaxdiff.Decoder(policy=policies.Threshold(0.1), stop=stoppers.Eos(), block_length=8)
    for row, question in zip((row for row in rows if row["task"] == "texts"), QUESTIONS, strict=True):
        prompt = np.asarray([tokenizer.plain(question)], np.int32)
        result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompt, decoder, gen_length=16)
        text = tokenizer.decode(np.asarray(result.tokens)[0, prompt.shape[1] :][:16], stop_strings=["e"])
        assert row["text"] == text
        assert 1 <= row["nfe"] <= int(result.nfe[0])
    texts = told["results"]["texts"]
    nfe = sum(row["nfe"] for row in rows if row["task"] == "texts")
    assert texts["nfe"] == pytest.approx(nfe / 3)
    assert texts["tpf"] == pytest.approx(sum(row["length"] for row in rows if row["task"] == "texts") / nfe)

    choices = [row for row in rows if row["task"] == "choice"]
    for row in choices:
        text = QUESTIONS[row["doc"]]
        prompt, whole = (
            tokenizer.plain(text),
            tokenizer.plain(f"{text} {['12', '3' + str(row['doc'])][row['request']]}"),
        )
        found = jaxdiff.log_likelihood(
            *(checkpoint.model, checkpoint.params),
            np.asarray([prompt], np.int32),
            np.asarray([whole[len(prompt) :]], np.int32),
            samples=4,
            key=request_keys(3, np.asarray([int(row["digest"][:7], 16)])),
        )
        assert row["value"] == pytest.approx(found.value[0], rel=1e-4)
        assert row["error"] == pytest.approx(found.error[0], rel=1e-3)
        assert [row["low"], row["high"]] == pytest.approx([end[0] for end in found.interval], rel=1e-3)
    best = [np.argmax([row["value"] for row in choices if row["doc"] == doc]) == 1 for doc in range(3)]
    assert told["results"]["choice"]["acc,none"] == pytest.approx(np.mean(best))

    bits = -sum(row["value"] for row in rows if row["task"] == "rolling") / np.log(2)
    assert told["results"]["rolling"]["bits_per_byte,none"] == pytest.approx(bits / len("".join(QUESTIONS)))


@pytest.mark.filterwarnings("ignore")
def test_a_stopped_run_goes_on(run, refused, folder, tasks, tmp_path, monkeypatch):
    asked = ("lm-eval", "--model", folder, "--include-path", tasks, *ASKED, "--out", tmp_path / "out.json", "--json")
    with monkeypatch.context() as stopped:
        stopped.setattr("jaxdiff.cli.lm_eval.replaced_file", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([str(one) for one in (*asked, "--tasks", "texts", "--limit", 2)]) == 130
    (part,) = (tmp_path / "out.json.parts").glob("*.jsonl")
    kept = [json.loads(line)["row"] for line in part.read_text().splitlines()[1:]]
    assert len(kept) == 2
    line = refused(*asked, "--tasks", "texts", "--samples", 5)
    assert "is of a run with another settings (samples)" in line
    assert run(*asked, "--tasks", "texts").code == 0
    rows = json.loads((tmp_path / "out.json").read_text())["requests"]
    assert [row for row in rows if row in kept] == sorted(kept, key=lambda row: row["doc"])
    assert len(rows) == 3
    assert not part.exists()
    (tasks / "texts.yaml").write_text((tasks / "texts.yaml").read_text().replace("until:", "beams: 4, until:"))
    ran = run(*asked, "--tasks", "texts")
    assert (ran.code, ran.out) == (2, "")
    assert "texts: found 'beams' in generation_kwargs, expected until" in ran.err
    assert not (tmp_path / "out.json.parts").exists()


@pytest.mark.filterwarnings("ignore")
def test_lm_evals_own_command_line_finds_the_model_by_name(run, folder, tasks, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = f"model={folder},policy=threshold:tau=0.1,block_length=8,samples=4,seed=3"
    given = dict(model="jaxdiff", tasks=["texts"], task_manager=manager)
    found = lm_eval.simple_evaluate(model_args=arguments, **given)
    out = tmp_path / "out.json"
    asked = ("lm-eval", "--model", folder, "--include-path", tasks, *ASKED, "--tasks", "texts", "--out", out)
    assert run(*asked).code == 0
    texts = [row["text"] for row in json.loads(out.read_text())["requests"]]
    assert [sample["resps"][0][0] for sample in found["samples"]["texts"]] == texts
    with pytest.raises(jaxdiff.InputError, match="model_args: found 'beams', expected adapter"):
        lm_eval.simple_evaluate(model_args=f"{arguments},beams=4", **given)


# What a model writes is the inside of a text here: it cannot matter, but is run. One of the two passes.
FUNCTIONS = {
    name: human_eval.Function(
        task_id=name,
        prompt=f'def {name}():\n  return {value}\nx = r"""',
        canonical_solution="",
        test='"""\ndef check(f):\n  assert f()',
        entry_point=name,
    )
    for name, value in (("good", 1), ("bad", 0))
}
OWN = """
include: {lm_eval}/tasks/humaneval/humaneval.yaml
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
"""


@pytest.mark.filterwarnings("ignore")
def test_what_a_model_wrote_is_run_only_when_asked_for(run, refused, folder, tasks, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    programs, confined = [], sandbox.run
    monkeypatch.setattr(human_eval, "functions", lambda: FUNCTIONS)
    monkeypatch.setattr(sandbox, "run", lambda program, **more: programs.append(program) or confined(program, **more))
    data = tasks / "functions.jsonl"
    data.write_text("".join(json.dumps(vars(function)) + "\n" for function in FUNCTIONS.values()))
    (tasks / "own.yaml").write_text(OWN.format(lm_eval=Path(lm_eval.__file__).parent, data=data))
    odd = TASK.format(name="odd", data=tasks / "data.jsonl", kind="generate_until")
    (tasks / "odd.yaml").write_text(odd + TEXTS + "unsafe_code: true\n")
    asked = ("lm-eval", "--model", folder, "--include-path", tasks, *ASKED, "--gen-length", 16, "--json")
    for names in ("humaneval_local", "own", "texts,odd"):
        name = names.split(",")[-1]
        assert f"tasks: {name} runs what the model wrote; --run-code runs it" in refused(*asked, "--tasks", names)
    ran = run(*asked, "--tasks", "odd", "--run-code")
    assert (ran.code, programs) == (2, [])
    assert "odd runs what the model wrote in a way of its own" in ran.err

    out = tasks.parent / "out.json"
    assert run(*asked, "--tasks", "humaneval_local,own", "--run-code", "--out", out).code == 0
    told = json.loads(out.read_text())
    for name in ("humaneval_local", "own"):
        assert told["results"][name]["pass@1,create_test"] == 0.5
        texts = [row["text"] for row in told["requests"] if row["task"] == name]
        for function, text in zip(FUNCTIONS.values(), texts, strict=True):
            assert function.program(text) in programs
    assert len([program for program in programs if "def check" in program]) == 4
