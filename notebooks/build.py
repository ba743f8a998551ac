"""Execute notebooks, NAME.py into NAME.ipynb: `python notebooks/build.py [NAME ...]`."""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # names the folder that it ran in


def build(text: Path) -> Path:
    """The notebook beside `text`, executed, without the marks that each execution leaves."""
    notebook = jupytext.read(text)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for index, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"{text.stem}-{index}".replace("_", "-")
        if cell.cell_type == "code":
            cell.execution_count = None
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, text.with_suffix(".ipynb"))
    return text.with_suffix(".ipynb")


if __name__ == "__main__":
    names = sys.argv[1:] or [p.stem for p in FOLDER.glob("*.py") if p.stem != "build"]
    for name in names:
        print(build(FOLDER / f"{name}.py"))
