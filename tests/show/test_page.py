"""The page of a decode: what is in it is what was decoded, and text in it is text."""

import json
from html.parser import HTMLParser

import pytest

from jaxdiff import InputError
from jaxdiff.show import page

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>{{ 7 * 7 }}{% raw %}&lt;\u2028\ud800"
WITHOUT_CLOSE = {"meta", "input", "path"}


class Seen(HTMLParser):
    """The elements of a page with their attributes, the text of each script, and that each element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in WITHOUT_CLOSE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in WITHOUT_CLOSE or self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def row(count=4, **changes):
    made = {
        "id": "a",
        "prompt_text": "What?",
        "token_ids": list(range(count)),
        "pieces": [f" t{n}" for n in range(count)],
        "commit_step": [n % 2 for n in range(count)],
        "log_prob": [-0.123456] * count,
        "nfe": 2,
        "cheap": 0,
        "work": 1.23456,
        "generated_tokens": count,
        "decoder": {"policy": "fixed", "fill": "parallel", "cache": "none", "block_length": 2},
    }
    return made | changes


def test_the_data_is_that_of_the_rows():
    """Given tokens and those past the end are told apart; rows of one id stand together, in their order."""
    canvas = row(6, id=7, prompt_text=None, commit_step=[-1, 1, -1, 0, -1, -1], log_prob=None)
    canvas["filled"] = [{"start": 1, "end": 2}, {"start": 3, "end": 6}]
    bare = row(id=None, pieces=None, commit_step=[0, 1, -1, -1], log_prob=[None, float("nan"), 0.0, -1])
    other = row(decoder={"policy": "threshold:tau=0.9", "fill": "recap", "stop": None})
    one, two, three = Seen(page([row(block_lead=1), canvas, other, bare])).data["prompts"]
    assert [(each["name"], each["text"]) for each in (one, two, three)] == [("a", "What?"), (7, None), (None, "What?")]
    assert one["of"][0] == {
        "label": "fixed",
        "settings": [["fill", "parallel"], ["cache", "none"], ["block length", 2]],
        "block": 2,
        "lead": 1,
        "nfe": 2,
        "cheap": 0,
        "work": 1.23,
        "tokens": 4,
        "ids": [0, 1, 2, 3],
        "pieces": [" t0", " t1", " t2", " t3"],
        "steps": [0, 1, 0, 1],
        "log_prob": [-0.1235] * 4,
        "name": "fixed",
        "first": [-1] * 4,
        "other": [],
    }
    assert [decode["label"] for decode in one["of"]] == ["fixed", "threshold:tau=0.9"]
    assert one["of"][1]["settings"] == [["fill", "recap"]]
    assert "first" not in two["of"][0]
    assert (two["of"][0]["steps"], two["of"][0]["log_prob"]) == ([-1, 1, -1, 0, -2, -2], None)
    assert (three["of"][0]["steps"], three["of"][0]["pieces"]) == ([0, 1, -2, -2], ["0 ", "1 ", "2 ", "3 "])
    assert three["of"][0]["log_prob"] == [None, None, 0.0, -1]


def test_decodes_side_by_side_are_compared():
    """Whose token it was first, position by position, and where they differ from the first of them."""
    fixed = row(5, commit_step=[2, 1, 0, 0, -1], nfe=3)
    quick = row(
        4, commit_step=[0, 1, 0, 1], token_ids=[0, 1, 9, 3], decoder={"policy": "quick", "fill": "recap", "seed": 1}
    )
    again = row(6, commit_step=[0, 0, 1, -1, 0, 0], token_ids=[0, 1, 9, 8, 4, 5])
    again["decoder"] = {"policy": "quick", "fill": "joint", "seed": 1}
    (prompt,) = Seen(page([fixed, quick, again])).data["prompts"]
    assert [decode["name"] for decode in prompt["of"]] == ["fixed", "quick, fill recap", "quick, fill joint"]
    assert [decode["first"] for decode in prompt["of"]] == [
        [-1, 2, 0, 0, None],
        [-1, 2, 1, 0],
        [-1, 2, 1, None, 2, 2],
    ]
    assert [decode["other"] for decode in prompt["of"]] == [[], [2], [2, 3, 5]]


def test_text_is_no_markup_and_the_page_needs_nothing_else():
    """Whatever it holds; one row of 256 such tokens is a page of less than 1 MB."""
    plain = Seen(page([row()]))
    text = page([row(256, id=HOSTILE, prompt_text=HOSTILE, pieces=[HOSTILE] * 256, decoder={"policy": HOSTILE})])
    hostile = Seen(text)
    assert hostile.elements == plain.elements
    assert (len(hostile.scripts), hostile.scripts[1]) == (2, plain.scripts[1])
    (prompt,) = hostile.data["prompts"]
    assert {prompt["name"], prompt["text"], prompt["of"][0]["label"], *prompt["of"][0]["pieces"]} == {HOSTILE}
    assert len(text.encode()) < 1_000_000
    assert not {"src", "href", "onclick", "link", "base"} & {name for _, found in plain.elements for name in found}
    assert "http" not in text.replace("http-equiv", "")
    (policy,) = (found["content"] for _, found in plain.elements if "http-equiv" in found)
    assert policy.startswith("default-src 'none';")


def test_what_can_be_pressed_has_a_name():
    seen = Seen(page([row()]))
    buttons = [found for tag, found in seen.elements if tag == "button"]
    assert [found["aria-label"] for found in buttons] == ["One forward back", "Play", "One forward on"]
    assert dict(seen.elements)["html"] == {"lang": "en"}
    inside = []
    for tag, found in seen.elements:
        if tag in ("label", "section"):
            inside.append(tag)
        assert tag not in ("select", "input") or "aria-label" in found or "label" in inside
    used = {found.get("id") for _, found in seen.elements}
    for name in ("prompts", "prompt", "panes", "step", "count", "speed", "colours", "legend", "told", "data"):
        assert name in used
        assert f'$("{name}")' in seen.scripts[1] or name == "told"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "show: found no rows"),
        ([row(), {"id": "a"}], "row 1: found no token_ids, pieces, commit_step, nfe, cheap, work, generated_tokens, "),
        ([{"id": 5, "text": "x"}], "write the rows with jaxdiff generate --for-show"),
        ([row(token_ids=[])], "row 0: token_ids: found '[]', expected a list of whole numbers"),
        ([row(token_ids=5)], "row 0: token_ids: found '5'"),
        ([row(pieces=["x"])], "pieces: found"),
        ([row(commit_step=[0, 0, 0, 2])], r"expected for each of token_ids a forward below nfe, or -1"),
        ([row(commit_step=[0, 0, 0, 0.5])], "commit_step: found"),
        ([row(nfe=None)], "nfe: found 'None', expected a number"),
        ([row(decoder="fixed")], "decoder: found 'fixed', expected an object that names the policy"),
        ([row(log_prob=[0.0])], "log_prob: expected a number for each of token_ids"),
        ([row(filled=[{"start": 0}])], "filled"),
        ([row(), row(prompt_text="Who?")], 'row 1: found id "a" with another prompt than a row before it'),
    ],
)
def test_what_cannot_be_drawn(rows, words):
    with pytest.raises(InputError) as error:
        page(rows)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
