"""`jaxdiff collect`, `fit`, and the policies that they make, from end to end on a tiny model."""

import json
import shutil

import pytest

LENGTHS = ("--gen-length", 16, "--block-length", 8)


@pytest.fixture
def home(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_a_filter_from_traces_to_text(home, run, adapter, tmp_path):
    collecting = ("collect", "--out", tmp_path / "traces", "--model", home, "--task", "drills", "--n", 40, *LENGTHS)
    ran = run(*collecting, "--stop", "none", "--features", "--tau", 0, "--tau", 0.9, "--answer", "threshold", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["prompts"] == 40
    assert ran.json["rows"] >= 40 * 2 * 2  # a forward for each block of each replay, at the least
    assert len(list((tmp_path / "traces").glob("part-*.npz"))) == 3

    fits = (("local", "local", ()), ("block", "official", ("--quota",)), ("hidden", "hidden", ("--reach", 1)))
    for kind, name, options in fits:
        fitting = ("fit", "--traces", tmp_path / "traces", "--name", name, "--model", home, "--kind", kind)
        ran = run(*fitting, "--steps", 20, "--tau", 0.3, *options, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["validation_loss"] > 0
        card = json.loads((home / "filters" / name / "filter.json").read_text())
        assert (card["tau"], card["reach"]) == (pytest.approx(0.3), {"local": 3, "block": None, "hidden": 1}[kind])

    outs = {}
    for policy in (
        "fixed",
        "oracle",
        "learned",
        "learned:name=official",
        "learned:name=hidden",
        "learned:tau=0.0",
        "learned:tau=1.0",
    ):
        ran = run("generate", "26 + 48 = ", "--model", home, "--policy", policy, *LENGTHS, "--json")
        assert ran.code == 0, ran.err
        outs[policy] = ran.json
    assert outs["fixed"]["nfe"] == outs["learned:tau=1.0"]["nfe"] == 16
    assert outs["learned:tau=0.0"]["nfe"] == 2  # all of a block at once
    assert outs["oracle"]["nfe"] <= 16
    assert outs["oracle"]["token_ids"] == outs["fixed"]["token_ids"]

    # An adapter's own filter comes before the model's of that name; the model's others are there too.
    shutil.copytree(adapter, home / "adapters" / "parallel")
    adapted = ("--model", home, "--adapter", "parallel")
    fitting = ("fit", "--traces", tmp_path / "traces", "--name", "local", *adapted, "--kind", "local", "--steps", 5)
    assert run(*fitting, "--tau", 0.0).code == 0
    assert json.loads((home / "adapters" / "parallel" / "filters" / "local" / "filter.json").read_text())["tau"] == 0.0
    for policy, nfe in (("learned", 2), ("learned:name=local,tau=1.0", 16), ("learned:name=hidden,tau=0.0", 2)):
        ran = run("generate", "26 + 48 = ", *adapted, "--policy", policy, *LENGTHS, "--json")
        assert (ran.json["nfe"], ran.json["adapter"]) == (nfe, "parallel")


def test_a_judge_from_rash_decodes_to_text(home, run, tmp_path):
    collecting = ("collect", "--out", tmp_path / "rash", "--model", home, "--task", "drills", "--n", 40, *LENGTHS)
    ran = run(*collecting, "--stop", "none", "--features", "--rash", "threshold:tau=0.0", "--json")
    assert ran.code == 0, ran.err
    fitting = ("fit", "--traces", tmp_path / "rash", "--name", "judge", "--model", home, "--kind", "judge")
    ran = run(*fitting, "--steps", 20, "--hidden", 4, "--tau", 0.3, "--json")
    assert ran.code == 0, ran.err
    assert 0 < ran.json["auc"] < 1
    assert 0 < ran.json["wrong"] < 1
    card = json.loads((home / "judges" / "judge" / "judge.json").read_text())
    assert (card["tau"], card["features"]) == (pytest.approx(0.3), 32)
    nfe = {}
    for judge in ("judge:tau=1,sure=0", "judge:tau=0,sure=2"):  # takes back nothing, and all that it sees
        asked = f"correct(threshold:tau=0.0 + {judge})"
        ran = run("generate", "26 + 48 = ", "--model", home, "--policy", asked, *LENGTHS, "--json")
        assert ran.code == 0, ran.err
        nfe[judge] = ran.json["nfe"]
    assert list(nfe.values()) == [2, 2 * 4]  # commits, looks and takes all back, commits again, looks once more

    sampled = ("--stop", "none", "--rash", "threshold:tau=0.0", "--unlikely", 0.02, "--temperature", 1, "--json")
    ran = run(*collecting[:2], tmp_path / "sampled", *collecting[3:], *sampled)
    assert (ran.code, ran.json["prompts"]) == (0, 40), ran.err

    told = {
        (*collecting, "--unlikely", 0.1): "unlikely: found it without --rash",
        (*collecting, "--rash", "threshold", "--unlikely", 0.1, "--answer", "threshold"): "or beside --answer",
        (*collecting, "--rash", "threshold", "--temperature", 1): "temperature: found it without --trajectories and",
        (*fitting, "--wrong", 2): "wrong: found it beside --kind judge",
        (*collecting, "--rash", "threshold", "--tau", 0.5): "found --tau, which is of replays, beside --rash",
        (
            *collecting,
            "--rash",
            "threshold",
            "--trajectories",
        ): "--tau or --rash beside --trajectories",
    }
    for asked, line in told.items():
        ran = run(*asked)
        assert (ran.code, line in ran.err) == (2, True), ran.err
    ran = run("generate", "1", "--model", home, "--policy", "correct(threshold + judge:name=other)")
    assert (ran.code, "policy correct: found name 'other'" in ran.err) == (2, True)


def test_a_filter_of_another_block_length_is_refused(home, run, refused, tmp_path):
    collecting = ("collect", "--out", tmp_path / "traces", "--model", home, "--task", "drills", "--n", 20, *LENGTHS)
    assert run(*collecting).code == 0
    fitting = ("fit", "--traces", tmp_path / "traces", "--name", "mine", "--model", home, "--kind", "block")
    assert run(*fitting, "--steps", 5).code == 0
    other = ("--model", home, "--policy", "learned:name=mine", "--gen-length", 16, "--block-length", 4)
    assert "found block_length 4, but this filter judges blocks of 8" in refused("generate", "26 + 48 = ", *other)


def test_a_drafter_from_trajectories_to_text(home, run, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdiff.train.fit_drafter.CHECKED", 2)
    own, traces = ("--model", home), tmp_path / "trajectories"
    collecting = ("collect", "--trajectories", "--out", traces, *own, "--task", "drills", "--n", 40, *LENGTHS)
    ran = run(*collecting, "--temperature", 1, "--batch-size", 40, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["prompts"], ran.json["rows"]) == (40, 40)

    fitting = ("fit", "--traces", traces, "--name", "adjust", *own, "--kind", "adjust")
    ran = run(*fitting, "--steps", 3, "--rows", 4, "--k", 3, "--json")
    assert ran.code == 0, ran.err
    assert min(ran.json["validation_kl"], ran.json["before"]) > 0
    assert json.loads((home / "drafters" / "adjust" / "drafter.json").read_text())["k"] == 3

    decoding = ("generate", "26 + 48 = ", *own, "--policy", "fixed:steps=2", *LENGTHS, "--stop", "none", "--json")
    ran = run(*decoding, "--fill", "adjust")  # blocks of 8 in two steps of four, of which three are written
    assert ran.code == 0, ran.err
    assert (ran.json["nfe"], ran.json["cheap"]) == (6, 10)
    for line, found in (
        ((*decoding, "--fill", "adjust:name=yours"), "found name 'yours', but"),
        ((*decoding, "--fill", "head"), "fill head: found name 'head', but"),
        ((*decoding, "--fill", "head:name=adjust"), "a drafter of kind adjust; take --fill adjust:name=adjust"),
        (
            (*decoding, "--fill", "adjust:size=2"),
            "fill adjust: found argument 'size=2', expected name=, k=, stop=, clip=",
        ),
        ((*decoding, "--fill", "adjust:k=0"), "fill adjust k: found 0, expected a whole number from 1"),
        ((*fitting, "--layers", 3), "layers: found it beside --kind adjust, which takes no such option"),
        ((*fitting[:-1], "local", "--k", 3), "k: found it beside --kind local, which takes no such option"),
        (
            (*fitting[:-1], "wide"),
            "kind: found 'wide', expected block, local, hidden, confidence, judge, adjust or",
        ),
        ((*fitting[:2], tmp_path, *fitting[3:]), "no trajectory-*.npz in"),
        (
            ("collect", "--out", tmp_path / "x", *own, "--temperature", 1),
            "temperature: found it without --trajectories",
        ),
        ((*collecting, "--features"), "found --features, --tau or --rash beside --trajectories"),
    ):
        assert found in refused(*line), line
