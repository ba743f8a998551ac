"""Every notebook runs from top to bottom, on something small (tests/documents: what it says)."""

import pytest

from tests.support.notebooks import NOTEBOOKS, run, shrunk


@pytest.mark.system
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook machinery itself
def test_it_runs(file, tmp_path):
    run(shrunk(file, tmp_path), tmp_path)
