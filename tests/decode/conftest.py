import pytest

from jaxdiff.decode import layout


@pytest.fixture(autouse=True)
def short_rungs(monkeypatch):
    """Canvases of a few tokens have rungs too."""
    monkeypatch.setattr(layout, "SHORTEST", 1)
