"""Every notebook runs from top to bottom, on something small (tests/documents: what it says)."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.small_checkpoints import CONFIGS, tensors, write_folder

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

SMALL = {
    "slanc": "MODEL, WINDOWS, WINDOW = {model!r}, 2, 32",
    "own_norm": "STEPS, SEEDS = 12, (0, 1)",
    "placement": "STEPS, LAYERS, PLACEMENTS = 5, 1, ('pre', 'peri')",
    "sweep": "STEPS, RATES = 10, (1e-3, 1e-2)",
}
"""What stands in the place of the constants that a notebook opens with."""


def shrunk(notebook, name, folder):
    """The notebook with other constants behind its own."""
    if name in SMALL:
        write_folder(folder / "hf", CONFIGS["llama"], tensors("llama"))
        source = SMALL[name].format(model=f"hf:{folder / 'hf'}")
        first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        for constant in source.partition(" =")[0].split(","):
            assert constant.strip() in notebook.cells[first].source
        notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(source))
    return notebook


@pytest.mark.system
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook machinery itself
def test_it_runs(file, tmp_path):
    notebook = shrunk(nbformat.read(file, as_version=4), file.stem, tmp_path)
    patience = {"timeout": 600, "startup_timeout": 600}  # where the machine is busy
    NotebookClient(notebook, kernel_name="python3", **patience).execute()
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert not errors
