"""Odd model folders and JSONL files, drawn by hypothesis; what `jaxdiff generate` makes of each, and whether it may.

A folder is a small published one with one thing changed: a key of a JSON file, the chat template, the tokenizer, the
index of the shards, the bytes of a file, or a file that is missing or something else. Whatever it is, the command ends
with 0, 1 or 2 within a minute and prints no traceback; and with 0 its answer to token ids is that of the folder before
the change, unless the changed key is one that may change it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxdiff.cli.main import main
from tests.convert import published as hf

FAMILIES = tuple(name for name in hf.CONFIGS if name not in ("llama", "qwen2", "qwen3"))  # which take a policy
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
SPECIAL = {"<bos>": 0, "<eos>": 1, "<turn>": 2, "<mask>": 3}
LONGEST = 60  # seconds that one command may take
SHAPE = ("--gen-length", "32", "--policy", "threshold:tau=0.1")

# What may change the answer to token ids where the folder still loads: numbers of the forward, and special ids.
NUMBERS = """
    attention_block block_size dtype eos_token_id eot_token_id mask_token_id eos_token mask_token head_dim n_heads
    num_attention_heads n_kv_heads num_key_value_heads rope_theta rms_norm_eps layer_norm_eps partial_rotary_factor
    rope_parameters rope_scaling num_experts_per_tok n_group topk_group routed_scaling_factor first_k_dense_replace
    num_shared_experts added_tokens_decoder torch_dtype architectures
"""
MAY_CHANGE = frozenset(NUMBERS.split())
# Keys that published files have and the small folders lack.
MORE = """
    rope_theta rope_scaling rope_parameters rms_norm_eps layer_norm_eps partial_rotary_factor sliding_window
    use_sliding_window max_window_layers layer_types attention_bias hidden_act use_cache torch_dtype dtype bos_token_id
    pad_token_id eot_token_id max_position_embeddings max_sequence_length quantization_config attention_dropout
    transformers_version auto_map is_decoder logit_scale final_logit_softcapping num_nextn_predict_layers family
"""
MORE_KEYS = tuple(MORE.split())
TEXTS = ("", "x", "NaN", "-1", "1e3", "silu", "gelu", "bfloat16", "<eos>", "<mask>", "\ud800", "\u0000", "a" * 5000)
TEMPLATES = (
    "",
    "{{ messages[0]['content'] }}",
    "{% for m in messages %}{{ m.content }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0].wrong.deeper }}",
    "{{ 1 / 0 }}",
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{{ messages[5]['content'] }}",
    "{{ messages[0]['content'] | upper }}",
    "{{ messages[0]['content'] }}<eos>",
    "<mask>{{ messages[0]['content'] }}",
    "{% include 'other' %}",
    "{{ ''.__class__.__mro__ }}",
    "a\ufeff{{ messages | tojson }}",
)


def tokenizer_files(folder: Path) -> None:
    """A tokenizer of 61 words: four special tokens, then w4, w5 ..."""
    vocab = SPECIAL | {f"w{i}": i for i in range(4, hf.VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w4"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>", "chat_template": TEMPLATE}
    write(folder / "tokenizer_config.json", words | {"tokenizer_class": "PreTrainedTokenizerFast"})
    write(folder / "generation_config.json", {"eos_token_id": 1, "temperature": 0.5})


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def base_folder(family: str, home: Path) -> Path:
    """A small published folder of the family, in two shards, with a tokenizer."""
    folder = hf.write_folder(home / family, hf.CONFIGS[family], hf.tensors(hf.shapes(family)), shards=2)
    tokenizer_files(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a folder: what is done to which file, and the key that it is about, if it is about one."""

    family: str
    file: str
    how: str
    key: str | None = None
    value: Any = None

    def make(self, folder: Path) -> None:
        path = folder / self.file
        match self.how:
            case "set":
                write(path, json.loads(path.read_text()) | {self.key: self.value})
            case "delete":
                write(path, {k: v for k, v in json.loads(path.read_text()).items() if k != self.key})
            case "replace":
                write(path, self.value)
            case "text":
                path.write_bytes(self.value)
            case "cut":
                path.write_bytes(path.read_bytes()[: int(self.value * path.stat().st_size)])
            case "byte":
                at, mask = self.value
                data = bytearray(path.read_bytes())
                data[int(at * (len(data) - 1))] ^= mask
                path.write_bytes(bytes(data))
            case "mark":
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
            case "remove":
                path.unlink()
            case "folder":
                path.unlink()
                path.mkdir()
            case "loop":
                path.unlink()
                path.symlink_to(path)

    @property
    def may_change(self) -> bool:
        """Whether a folder that still loads may answer otherwise."""
        if self.how in ("set", "delete", "replace"):
            return self.key is None or self.key in MAY_CHANGE
        # Bytes of a config may turn a digit; bytes of weights are the weights.
        return self.how in ("byte", "text")


def odd_values() -> st.SearchStrategy[Any]:
    numbers = (0, 1, -1, 2, 3, 7, 60, 61, 62, 2**31, 2**63, -(2**70), 0.0, -0.5, 0.5, 1.5, 1e-30, 1e30, 1e999)
    plain = st.one_of(
        st.sampled_from((None, True, False)),
        st.sampled_from(numbers),
        st.just(float("nan")),
        st.sampled_from(TEXTS),
        st.integers(-5, 70),
    )
    return st.one_of(
        plain,
        st.lists(plain, max_size=4),
        st.dictionaries(st.sampled_from(("rope_theta", "rope_type", "factor", "x", "default")), plain, max_size=3),
        st.just({"default": {"rope_theta": 5.0, "nested": {"deeper": [1]}}}),
    )


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One change of one family's folder."""
    family = draw(st.sampled_from(FAMILIES))
    config, tokenizer = "config.json", "tokenizer_config.json"
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    match draw(st.sampled_from(("config", "config", "config", "ids", "words", "template", "index", "file"))):
        case "config":
            key = draw(st.sampled_from((*hf.CONFIGS[family], *MORE_KEYS)))
            how = draw(st.sampled_from(("set", "set", "set", "delete")))
            return Change(family, config, how, key, draw(odd_values()) if how == "set" else None)
        case "ids":
            key = draw(st.sampled_from(("eos_token_id", "mask_token_id", "pad_token_id", "top_p", "x")))
            ids = st.lists(st.integers(-1, 62), max_size=5) | odd_values()
            return Change(family, "generation_config.json", "set", key, draw(ids))
        case "words":
            key = draw(
                st.sampled_from(
                    ("eos_token", "mask_token", "bos_token", "added_tokens_decoder", "tokenizer_class", "x")
                )
            )
            words = st.sampled_from((*SPECIAL, {"content": "<turn>"}, {"content": 3})) | odd_values()
            return Change(family, tokenizer, "set", key, draw(words))
        case "template":
            drawn = st.sampled_from(TEMPLATES) | st.text("{}%messages[]' .content|-", max_size=30) | odd_values()
            named = st.just([{"name": "tool_use", "template": "x"}]) | st.just({"rag": TEMPLATE})
            return Change(family, tokenizer, "set", "chat_template", draw(drawn | named))
        case "index":
            keys = sorted(hf.shapes(family))
            names = st.sampled_from((*shards, "other.safetensors", "../config.json", "", "/dev/null", 7, None))
            listed = st.dictionaries(st.sampled_from((*keys, "extra.weight")), names, max_size=3)
            whole = {key: shards[i % 2] for i, key in enumerate(hf.tensors(hf.shapes(family)))}
            value = draw(st.one_of(odd_values(), listed, listed.map(lambda some: whole | some)))
            return Change(family, index, "set", "weight_map", value)
        case _:
            files = (config, tokenizer, "tokenizer.json", "generation_config.json", index, *shards)
            file = draw(st.sampled_from(files))
            how = draw(st.sampled_from(("text", "cut", "byte", "mark", "remove", "folder", "loop")))
            value: Any = None
            if how == "text":
                value = draw(st.sampled_from((b"", b"[]", b"null", b"{", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b"1")))
            if how == "cut":
                value = draw(st.floats(0.0, 1.0))
            if how == "byte":
                value = draw(st.tuples(st.floats(0.0, 1.0), st.integers(1, 255)))
            return Change(family, file, how, None, value)


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command line did; `crash`: what came out of it that should not have."""

    code: int
    out: str
    err: str
    crash: str = ""


def run(*arguments: str) -> Ran:
    """The command line in this process, with at most LONGEST seconds."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still running after {LONGEST} s")

    out, err, crash, code = io.StringIO(), io.StringIO(), "", -1
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    except BaseException as error:
        crash = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Ran(code, out.getvalue(), err.getvalue(), crash)


def generate(model: Path, rows: Path, out: Path, slots: int) -> Ran:
    """Few slots are few programs, however many rows are refused."""
    files = ("--in", str(rows), "--out", str(out))
    return run("generate", "--model", str(model), *files, *SHAPE, "--batch-size", str(slots))


def faults_of(ran: Ran) -> list[str]:
    """What no command line may do, whatever it was given."""
    faults = [ran.crash] if ran.crash else []
    if ran.code not in (0, 1, 2):
        faults.append(f"exit code {ran.code}")
    if "Traceback" in ran.err:
        faults.append("a traceback")
    if ran.code == 2 and not (ran.err.startswith("jaxdiff: ") and len(ran.err.splitlines()) == 1):
        faults.append(f"exit code 2 without one line: {ran.err[:300]!r}")
    return faults


ROWS = ({"id": "ids", "prompt_ids": [5, 6, 7]}, {"id": "text", "prompt": "w5 w6"})


class Folders:
    """The folders before a change, and their answers."""

    def __init__(self, home: Path) -> None:
        self.home, self.rows = home, home / "in.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        self.answers: dict[str, Any] = {}

    def base(self, family: str) -> Path:
        folder = self.home / family
        if family not in self.answers:
            base_folder(family, self.home)
            ran, answer = self.answer(folder)
            if ran.code or ran.crash:
                raise RuntimeError(f"the folder before any change: {ran}")
            self.answers[family] = answer
        return folder

    def answer(self, folder: Path) -> tuple[Ran, Any]:
        out = self.home / "out.jsonl"
        out.unlink(missing_ok=True)
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
        ran = generate(folder, self.rows, out, slots=1)
        if not out.is_file():
            return ran, None
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return ran, next((row.get("token_ids") for row in rows if row["id"] == "ids"), None)

    def judge(self, change: Change) -> tuple[Ran, list[str]]:
        """What the command does with a changed folder, and what it must not have done."""
        folder = self.home / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base(change.family), folder)
        change.make(folder)
        ran, answer = self.answer(folder)
        faults = faults_of(ran)
        if ran.code == 0 and answer != self.answers[change.family] and not change.may_change:
            faults.append(f"exit code 0 and another answer: {answer}")
        return ran, faults


def lines() -> st.SearchStrategy[bytes]:
    """A line of a JSONL file: a row, nearly one, or none."""
    ids = st.lists(st.integers(4, hf.VOCAB - 1), min_size=1, max_size=6)
    holes = st.lists(st.sampled_from((3, 3, 9, 1)), min_size=8, max_size=8)
    turns = st.fixed_dictionaries(
        {
            "role": st.sampled_from(("system", "user", "assistant", "tool")),
            "content": st.sampled_from(("w5", "", "<eos>")),
        }
    )
    chats = st.lists(turns, max_size=3)
    good = st.one_of(
        ids.map(lambda i: {"prompt_ids": i}),
        st.just({"prompt": "w5 w6"}),
        holes.map(lambda c: {"canvas_ids": c}),
        chats.map(lambda c: {"messages": c}),
    )
    values = st.one_of(odd_values(), st.just([[5]]), st.just([5.0]), st.just([True]), st.just([10**400]), ids, chats)
    keys = st.sampled_from(("id", "prompt", "prompt_ids", "canvas_ids", "text", "seed", "messages", "stop_strings"))
    odd = st.dictionaries(keys, values, max_size=3)
    mixed = st.tuples(good, odd).map(lambda pair: pair[0] | pair[1])
    raw = st.sampled_from(
        (
            b"",
            b"   ",
            b"null",
            b"{}",
            b"[]",
            b'"prompt"',
            b'{"prompt": "w5", "prompt": "w6"}',
            b'{"id": NaN, "prompt": "w5"}',
            b'{"id": Infinity, "prompt_ids": [5]}',
            b'{"prompt": "\xff"}',
            b'{"prompt": "\\ud800"}',
            b'{"prompt": "w5"',
            b'\xef\xbb\xbf{"prompt": "w5"}',
            b'{"prompt": "w5"}\r',
            b'{"prompt": "<mask> <eos>"}',
            b"[" * 20_000,
            b'{"id": {"a": [1, null]}, "prompt": "w5"}',
            b'{"prompt_ids": ' + b"5" * 5000 + b"}",
            b'{"prompt_ids": [5], "prompt_ids": [6]}',
        )
    )
    dumped = st.one_of(good, mixed, odd).map(lambda row: json.dumps(row).encode())
    return dumped | raw


def files() -> st.SearchStrategy[bytes]:
    """A JSONL file."""
    ends = st.sampled_from((b"\n", b"\n", b"\r\n", b""))
    return st.tuples(st.lists(lines(), max_size=5), ends).map(lambda both: b"\n".join(both[0]) + both[1])


class Files:
    """The sound folder that files are decoded with."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, Folders(home).base("llada")

    def judge(self, content: bytes) -> tuple[Ran, list[str]]:
        """What the command does with a file, and what it must not have done."""
        rows, out = self.home / "rows.jsonl", self.home / "rows.out.jsonl"
        rows.write_bytes(content)
        out.unlink(missing_ok=True)
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
        ran = generate(self.folder, rows, out, slots=2)
        faults = faults_of(ran)
        if ran.code not in (0, 1):
            return ran, faults + (["a row was lost: no file"] if ran.code == 2 and out.exists() else [])
        given = [line for line in content.split(b"\n") if line.strip()]
        try:
            made = [strict(line) for line in out.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            return ran, [*faults, f"a row that is no JSON: {error}"]
        if len(made) != len(given):
            faults.append(f"{len(given)} rows in, {len(made)} out")
        for line, row in zip(given, made, strict=False):
            if ("error" in row) == ("token_ids" in row):
                faults.append(f"neither an answer nor an error, or both: {row}")
            elif "error" not in row:
                read = json.loads(line.decode("utf-8-sig"))
                if "id" in read and read["id"] is not None and read["id"] != row["id"]:
                    faults.append(f"id {read['id']!r} came out as {row['id']!r}")
        if (ran.code == 1) != any("error" in row or row.get("not_finite") for row in made):
            faults.append(f"exit code {ran.code} with {sum('error' in row for row in made)} refused rows")
        return ran, faults


def strict(line: str) -> Any:
    """A line of JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)
