"""The notebook runs from top to bottom, and what it holds is what it makes."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_documents import LINK

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def outputs(notebook):
    """What each cell prints, and the kinds of what it draws."""
    told = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return (
        "".join(output.text for output in told if output.output_type == "stream"),
        [sorted(output.data) for output in told if output.output_type == "display_data"],
    )


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs(committed, tmp_path):
    fresh = nbformat.from_dict(committed)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert outputs(fresh) == outputs(committed)
    assert "the same tokens: True" in outputs(fresh)[0]


def test_links(committed):
    named = [link for cell in committed.cells if cell.cell_type == "markdown" for link in LINK.findall(cell.source)]
    assert named
    assert all((NOTEBOOK.parent / link).exists() for link in named if "://" not in link)
