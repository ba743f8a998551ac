"""Every notebook runs from top to bottom, on something small, and its two forms say the same."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.small_checkpoints import CONFIGS, tensors, write_folder

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

SMALL = {
    "slanc": "MODEL, WINDOWS, WINDOW = {model!r}, 2, 32",
    "own_norm": "STEPS, SEEDS = 12, (0, 1)",
    "placement": "STEPS, LAYERS = 12, 2",
    "sweep": "STEPS, RATES = 10, (1e-3, 1e-2)",
}
"""What stands in the place of the constants that a notebook opens with."""


def shrunk(notebook, name, folder):
    """The notebook with other constants behind its own."""
    if name in SMALL:
        write_folder(folder / "hf", CONFIGS["llama"], tensors("llama"))
        source = SMALL[name].format(model=f"hf:{folder / 'hf'}")
        first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        for constant in source.partition("=")[0].split(","):
            assert constant.strip() in notebook.cells[first].source
        notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(source))
    return notebook


def test_there_are_notebooks_and_their_texts():
    assert NOTEBOOKS
    assert {f.stem for f in NOTEBOOKS} == {f.stem for f in FOLDER.glob("*.py")} - {"build"}


@pytest.mark.system
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook machinery itself
def test_it_runs(file, tmp_path):
    notebook = shrunk(nbformat.read(file, as_version=4), file.stem, tmp_path)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert not errors


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_paired_with_its_text(file):
    text = jupytext.read(file.with_suffix(".py"))
    notebook = nbformat.read(file, as_version=4)
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_it_shows_is_kept_for_reading_on_the_web(file):
    notebook = nbformat.read(file, as_version=4)
    data = [o.get("data", {}) for c in notebook.cells for o in c.get("outputs", [])]
    assert any("image/png" in d or "text/markdown" in d for d in data)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_opens_with_what_it_shows_and_how_long_it_takes(file):
    opening = nbformat.read(file, as_version=4).cells[0].source
    assert opening.startswith("# ")
    assert "You will" in opening
    assert "minute" in opening
