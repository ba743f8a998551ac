"""A user's own files, and a run that knows what computed it."""

import sys

import pytest

from normlab.commands.launch import imports
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import norms
from normlab.runs import sources, user_files
from normlab.runs.run import Run
from normlab.training.trainer import _try_to_build
from tests.support.own_norm import OWN


@pytest.fixture
def own(tmp_path):
    """A user's file, imported; forgotten afterwards."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    user_files.load([str(file)])
    yield file
    forget()


def forget():
    user_files._LOADED.clear()
    sys.modules.pop("normlab_imports.own", None)
    if "own" in norms:
        norms.remove("own")


@pytest.fixture
def run(own, tmp_path):
    """What of a run this is about, as training writes it."""
    made = Run(tmp_path / "run")
    made.write("config.yaml", {"norm": {"type": "own"}, "placement": {"type": "pre"}})
    made.write("provenance.json", computed := sources.now("own", "pre"))
    sources.keep(made.directory, computed["imports"])
    return made


def test_a_file_registers_once_and_a_run_keeps_a_copy(own, run):
    user_files.load([str(own)])
    assert norms["own"].Config().power == 1.0
    assert (run["imports"] / "own.py").read_text() == OWN
    assert set(run.read("provenance.json")["imports"]) == {"own.py"}
    assert sources.check(run, allowed=False) == []


def test_a_file_that_is_not_named_again_is_asked_for_and_nothing_is_imported(own, run):
    forget()
    for allowed in (False, True):
        with pytest.raises(ValueError, match=r"trained with imports=\[own.py\]: name that file"):
            sources.check(run, allowed)
    assert "own" not in norms


def test_another_file_is_refused_or_named_in_the_record(own, run):
    forget()
    own.write_text(OWN.replace("1e-6", "1e-5"))
    user_files.load([str(own)])
    with pytest.raises(ValueError, match=r"source of norm=own: not what .*run was trained with"):
        sources.check(run, allowed=False)
    assert sources.check(run, allowed=True) == ["the source of norm=own"]


def test_what_else_is_written_into_the_file_is_no_change(own, run):
    forget()
    own.write_text(OWN + "\n\n# a thought\n\n\ndef more(x):\n    return x\n")
    user_files.load([str(own)])
    assert sources.check(run, allowed=False) == []


def test_a_run_that_needs_no_file_wants_none(own):
    assert sources.now("rmsnorm", "pre")["imports"] == {}


def test_another_source_of_a_norm_of_ours_is_refused_too(tmp_path):
    run = Run(tmp_path)
    run.write("config.yaml", {"norm": {"type": "rmsnorm"}, "placement": {"type": "pre"}})
    run.write("provenance.json", {"norm_source": "0" * 64})
    with pytest.raises(ValueError, match="the source of norm=rmsnorm: not what"):
        sources.check(run, allowed=False)
    assert sources.check(run, allowed=True) == ["the source of norm=rmsnorm"]
    run.write("provenance.json", {})  # an older run, of which it isn't known
    assert sources.check(run, allowed=False) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.py", None, r"imports=\[.*no.py\]: no such file"),
        ("no.txt", "x = 1", r"expected a Python file, NAME.py"),
        ("bad.py", "1 / 0", r"bad.py\]: ZeroDivisionError: division by zero"),
        ("bad.py", "def", r"bad.py\]: SyntaxError"),
        ("own.py", "x = 1", r"another imported file is called own.py too"),
    ],
)
def test_a_bad_file_is_named(own, tmp_path, name, text, message):
    folder = tmp_path / "other"
    folder.mkdir()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        user_files.load([str(folder / name)])


def test_a_file_that_changes_under_a_process_is_refused(own):
    own.write_text(OWN + "\n")
    with pytest.raises(ValueError, match="changed since this process imported it"):
        user_files.load([str(own)])


def test_a_norm_that_sums_nothing_is_told_before_it_is_trained(tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace("    has_statistic = False\n", ""))
    user_files.load([str(tmp_path / "own.py")])
    try:
        with pytest.raises(ValueError, match=r"accumulated nothing .* set has_statistic = False"):
            _try_to_build(ModelConfig(), norms["own"].Config(), PlacementConfig("pre"), ())
    finally:
        forget()


def test_imports_are_read_off_the_command_line_before_it_is_composed():
    assert imports(["imports=[a.py,b/c.py]", "norm=own"]) == ["a.py", "b/c.py"]
    assert imports(["imports=a.py"]) == ["a.py"]
    assert imports(["norm=dyt"]) == []
