"""The notebooks, on something small."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.support.small_checkpoints import CONFIGS, tensors, write_folder

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))

SMALL = {
    "slanc": "MODEL, WINDOWS, WINDOW = {model!r}, 2, 32",
    "own_norm": "STEPS, SEEDS = 12, (0, 1)",
    "placement": "STEPS, LAYERS, PLACEMENTS = 5, 1, ('pre', 'peri')",
    "study": "STEPS, RATES, SEEDS = 10, (1e-3, 1e-2), (0, 1)",
    "norm_unit": "STEPS, LAYERS, WIDTH, PROBED = 8, 2, 32, 16",
}
"""What stands in the place of the constants that a notebook opens with."""


def shrunk(file, folder):
    """The notebook with other constants after its own."""
    notebook, name = nbformat.read(file, as_version=4), file.stem
    if name in SMALL:
        write_folder(folder / "hf", CONFIGS["llama"], tensors("llama"))
        source = SMALL[name].format(model=f"hf:{folder / 'hf'}")
        first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        for constant in source.partition(" =")[0].split(","):
            assert constant.strip() in notebook.cells[first].source
        notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(source))
    return notebook


def run(notebook, folder, **kernel):
    """Run all its cells in a folder; an error in one is an exception."""
    patience = {"timeout": 600, "startup_timeout": 600}  # where the machine is busy
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_name="python3", resources=resources, **patience)
    client.execute(**kernel)
