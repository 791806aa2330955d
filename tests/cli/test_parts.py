"""Part files: whole lines survive a kill, other runs are refused, parts merge when they hold every row."""

import dataclasses
import json
import shutil

import pytest

from jaxdiff import InputError, parts
from jaxdiff.checkpoint import load
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.requests import Job
from jaxdiff.cli.share import fingerprints

RUN = {"input": "0" * 16, "settings": "1" * 16}
DECODING = Decoding(model="any", gen_length=16, block_length=8)
JOB = Job(seed=0, slots=8)


def fill(out, process, numbers, run=RUN):
    with parts.Part(out, process, run) as part:
        for number in numbers:
            part.write({"number": number, "row": {"id": number}})
    return part.path


def test_parts_merge_in_the_order_of_the_input_when_they_hold_every_row(tmp_path):
    out = tmp_path / "out.jsonl"
    fill(out, 0, [4, 0])
    assert parts.merged(out, RUN, [0, 1, 4]) is None
    fill(out, 1, [1])
    assert parts.merged(out, RUN, [0, 1, 4]) == [{"number": n, "row": {"id": n}} for n in (0, 1, 4)]
    assert parts.merged(out, RUN, []) == []


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_line_that_a_kill_cut_short_is_not_there_and_the_next_ones_are_whole(tmp_path, cut):
    out = tmp_path / "out.jsonl"
    path = fill(out, 0, [3, 5])
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(parts.written(out, RUN)) == [3]
    fill(out, 0, [5])
    assert list(parts.written(out, RUN)) == [3, 5]
    assert len(path.read_text().splitlines()) == 3


def test_a_part_that_was_killed_in_its_header_begins_anew(tmp_path):
    out = tmp_path / "out.jsonl"
    path = fill(out, 0, [])
    for torn in (b"", path.read_bytes()[:9]):
        path.write_bytes(torn)
        assert parts.written(out, RUN) == {}
        fill(out, 0, [])
        assert json.loads(path.read_text()) == {"run": RUN}


def test_a_part_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    path = fill(out, 0, [1], RUN | {"settings": "2" * 16})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"of a run with another settings; delete .*\.parts, or name"):
        parts.written(out, RUN)
    assert path.read_bytes() == before
    for damage in (b'{"number": 2}\n', b"\0\0\0\n", b"[]\n", b"\xff\n", b'{"number": 2, "row": NaN}\n'):
        path.write_bytes(before + damage)
        with pytest.raises(InputError, match=r"damaged .* delete it"):
            parts.written(out, RUN)


def test_fingerprints_tell_what_differs(ids_folder, tmp_path):
    home = tmp_path / "model"
    shutil.copytree(ids_folder, home)
    checkpoint = load(home)
    first = fingerprints(b"{}\n", checkpoint, DECODING, JOB)
    assert fingerprints(b"{}\n", dataclasses.replace(checkpoint, path=ids_folder), DECODING, JOB) == first

    def differs(**changes):
        arguments = dict(data=b"{}\n", checkpoint=checkpoint, decoding=DECODING, job=JOB) | changes
        return parts.differences(fingerprints(**arguments), first)

    assert differs(job=Job(seed=1, slots=8)) == "settings (seed)"
    assert differs(job=Job(seed=0, slots=8, log_prob=True, special=True)) == "settings (log_prob, special)"
    assert differs(job=Job(seed=0, slots=8, system="x", chat=False)) == "settings (chat, system)"
    assert differs(decoding=dataclasses.replace(DECODING, stop_string=("x",))) == "settings (stop_string)"
    assert differs(decoding=dataclasses.replace(DECODING, constraint="regex:x")) == "settings (constraint)"
    assert differs(job=Job(seed=0, slots=2)) == ""
    assert differs(decoding=dataclasses.replace(DECODING, cache="none")) == ""  # what it is without the option
    assert differs(decoding=dataclasses.replace(DECODING, temperature=0.5)) == "settings (temperature)"
    assert differs(decoding=dataclasses.replace(DECODING, model="elsewhere")) == ""
    assert differs(data=b"{}\n{}\n") == "input"
    for name in ("README.md", "rows.jsonl", "notes"):  # what no decode reads
        (home / name).write_text("new")
    assert differs() == ""
    (home / "filters").mkdir()
    (home / "filters" / "x").write_text("new")
    assert differs() == "model"
