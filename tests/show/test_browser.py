"""The page in a real Chromium, where there is one: colours, keys, and what a screen reader is given."""

import shutil

import pytest

from experiments.page import chromium
from jaxdiff.show import page
from tests.show.test_page import row

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="found no chromium on the path")
QUICK = {"policy": "quick", "block_length": 2}


def test_colours_keys_and_what_a_screen_reader_is_given(tmp_path):
    quick = row(commit_step=[0, 0, 1, 1], token_ids=[0, 1, 9, 3], decoder=QUICK)  # first at 1, another token at 2
    file = tmp_path / "page.html"
    file.write_text(page([row(), quick, row(id="alone")]), encoding="utf-8")
    with chromium() as browser:

        def of(pane, what, selector=".t"):
            """Something of all these elements of a pane, in their order."""
            nodes = f"document.querySelectorAll('.pane')[{pane}].querySelectorAll('{selector}')"
            return browser.value(f"[...{nodes}].map((node) => {what})")

        browser.open(file, "#colour=policy&step=1")
        colour = "getComputedStyle(node).backgroundColor"
        together, first, second, mask = (
            "rgb(208, 213, 222)",
            "rgb(0, 114, 178)",
            "rgb(230, 159, 0)",
            "rgb(228, 232, 238)",
        )
        if browser.value("matchMedia('(prefers-color-scheme: dark)').matches"):
            together, mask = "rgb(76, 86, 102)", "rgb(38, 45, 56)"
        assert of(0, colour) == [together, mask, first, mask]
        assert of(1, colour) == [together, second, mask, mask]
        browser.press("ArrowRight")
        assert of(0, colour) == [together, second, first, together]
        assert of(1, colour) == [together, second, second, together]
        lines = "getComputedStyle(node).textDecorationLine"
        assert [of(pane, lines) for pane in (0, 1)] == [["none"] * 4, ["none", "none", "underline", "none"]]

        # The arrows go through the tokens of a canvas that has the focus: a role for which screen readers pass them on,
        # whose tokens are hidden from them (masks have a text that is not to be seen), beside the text as it stands.
        browser.press("ArrowLeft")
        assert browser.exposed("application") == [
            f"{name}: the arrow keys move from token to token" for name in ("fixed", "quick")
        ]
        assert of(1, "node.textContent", ".unseen") == ["After forward 1 of 2:  t0 t1 (2 masks)"]
        assert not [name for name in browser.exposed("StaticText") if name.strip() == "t2"]
        browser.value("document.querySelectorAll('.canvas')[1].focus()")
        told = []
        for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
            browser.press(key)
            told += of(1, "node.textContent", ".about")
        assert told[1].endswith("forward 1 of 2 · log-prob -0.123 (p 0.884) · first by quick")
        assert told[2].startswith("[MASK] position 2 · block 2 · not yet committed")
        assert browser.value("document.getElementById('count').textContent") == "forward 1 of 2"
        assert of(1, "node.getAttribute('aria-live')", ".about") == ["polite"]

        # A decode that stands alone has nothing to be compared with.
        browser.open(file, "#colour=policy&prompt=1")
        disabled = browser.value("[...document.querySelectorAll('[name=colour]')].map((radio) => radio.disabled)")
        assert disabled == [False, False, True, False]
        assert browser.value("document.body.dataset.colour") == "step"
        assert browser.console == []
