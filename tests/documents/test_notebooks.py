"""Notebooks as documents: two forms that say the same, an opening, pictures for the web."""

from pathlib import Path

import jupytext
import nbformat
import pytest

pytestmark = pytest.mark.documents

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks_and_their_texts():
    assert NOTEBOOKS
    assert {f.stem for f in NOTEBOOKS} == {f.stem for f in FOLDER.glob("*.py")} - {"build"}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_paired_with_its_text_opens_well_and_keeps_what_it_shows(file):
    text = jupytext.read(file.with_suffix(".py"))
    cells = nbformat.read(file, as_version=4).cells
    assert [(c.cell_type, c.source) for c in text.cells] == [(c.cell_type, c.source) for c in cells]
    opening = cells[0].source
    assert opening.startswith("# ")
    assert "You will" in opening
    assert "minute" in opening
    data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    assert any("image/png" in d or "text/markdown" in d for d in data)
