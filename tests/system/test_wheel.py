"""What `pip install` brings: the library, its configs, and two commands."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from tests.support.notebooks import NOTEBOOKS, run, shrunk

pytestmark = pytest.mark.extended
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, unpacked by name: pip builds it with what pyproject.toml asks."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as made:
        yield made


def test_it_holds_every_file_of_the_library_and_every_config(wheel):
    names = set(wheel.namelist())
    here = [*(ROOT / "normlab").rglob("*.py"), *(ROOT / "normlab" / "report").glob("*.[hc]*")]
    wanted = {file.relative_to(ROOT).as_posix() for file in here}
    wanted |= {f"normlab/{f.relative_to(ROOT).as_posix()}" for f in ROOT.glob("configs/**/*.yaml")}
    assert wanted <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"normlab"}


def test_it_has_both_commands(wheel):
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entry).decode()
    assert "normlab-train = normlab.commands.train:main" in text
    assert "normlab-evaluate = normlab.commands.evaluate:main" in text


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """A folder with what the wheel installs, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook machinery itself
def test_a_notebook_runs_from_it_outside_of_a_checkout(file, unpacked, tmp_path):
    notebook = shrunk(file, tmp_path)
    imported = f"import normlab; assert normlab.__file__.startswith({str(unpacked)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(imported))
    run(notebook, tmp_path, env=os.environ | {"PYTHONPATH": str(unpacked)})
