"""Every `python -m` command of the pages has fields that there are, and values that they take.

The system tests run them, on something small. Every notebook's two forms say the same.
"""

import importlib.util

import pytest
import yaml

from normlab.commands import evaluate, export, golden
from normlab.commands.groups import CONFIGS
from normlab.commands.launch import told
from tests.support.command_line import SCHEMAS, composed, documented, evaluation, sweep

pytestmark = pytest.mark.documents

VERBS = {"train": ["remove", "tune"], "evaluate": ["show", "ranges", *evaluate.VERBS]}
COMMANDS = list(dict.fromkeys(command[2:] for command in documented()))
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_there_are_commands_of_both_applications_with_loops_unrolled():
    assert {command[0] for command in COMMANDS} == {"train", "evaluate"}
    assert {command[1] for command in COMMANDS} >= {"remove", "list", "figures", "report"}
    assert not any("$" in argument for command in COMMANDS for argument in command)


def ends(experiment):
    """The first and the last run of all that an experiment sweeps over."""
    config = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
    swept = config.get("hydra", {}).get("sweeper", {}).get("params", {})
    runs = list(sweep(*(f"{key}={values}" for key, values in swept.items())))
    return runs[:1] + runs[-1:] or [[]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_its_fields_are_there_and_take_its_values(command):
    app, *arguments = command
    assert importlib.util.find_spec(app)
    verb = arguments[0] if arguments and arguments[0].isalpha() else None
    given = [a for a in arguments if "=" in a]
    # What a page leaves to its reader: a number, and the norm that another page writes.
    given = [a.replace("=N", "=4").replace("mediannorm", "layernorm") for a in given]
    if verb == "ranges":
        evaluation(*given)
    elif verb == "golden":
        told(golden.GoldenConfig, given)
    elif verb == "export":
        told(export.ExportConfig, given)
    elif verb == "tune":
        for run in sweep(*given):
            composed("train", *run)
    elif verb is not None:
        assert verb in VERBS[app]
        composed(verb, *given) if verb in SCHEMAS else None
    elif app == "evaluate":
        evaluation(*given)
    else:
        named = [a.removeprefix("experiment=") for a in given if a.startswith("experiment=")]
        for more in ends(*named) if named else [[]]:
            for run in sweep(*more, *given):
                composed(app, *run)


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_opens_with_a_line_of_what_it_is(file):
    assert file.read_text().startswith("# ")
