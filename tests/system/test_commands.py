"""Every `python -m` command of the README and of the documentation runs, on something small."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TINY
from tests.support.runs import tiny_config
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder
from train.loop import train

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECORD = 'python() { for a in "$XLA_FLAGS" "$@"; do printf "%s\\t" "$a"; done; echo; }; '
MUTE = "make() { :; }; git() { :; }; pip() { :; }; cd() { :; }; "


def commands() -> list[tuple[str, ...]]:
    """What bash hands to `python` in the fenced blocks of all pages, loops and variables included.

    Before it, XLA's flags. Blocks that name a language are not for this machine: Python, YAML, and
    (sh) what needs a launcher, a cluster, or two processes at once; those have tests of their own.
    """
    found = []
    for page in PAGES:
        for language, block in FENCED.findall(page.read_text()):
            if language or not re.search(r"^ *python ", block, re.MULTILINE):
                continue
            with tempfile.TemporaryDirectory() as empty:
                bash = ["bash", "-c", RECORD + MUTE + block]
                done = subprocess.run(bash, cwd=empty, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {done.stderr}"
            found += [tuple(line.rstrip("\t").split("\t")) for line in done.stdout.splitlines()]
    return [c for c in found if c[1] == "-m" and c[2].split(".")[0] in ("train", "evaluate")]


TRAIN = {
    **{f"model.{name}": value for name, value in TINY.items()},
    "data": "embedded", "data.vocab_size": 300, "optimizer.warmup": 1, "steps": 2, "batch": 4,
    "window": 16, "eval_every": 2, "eval_windows": 4,
}  # fmt: skip
EVALUATE = {"max_windows": 2, "window": 32, "calibration_windows": 1, "data.corpus": "embedded"}


def settings(experiment: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / "experiment" / f"{experiment}.yaml").read_text())


def first(experiment: str) -> dict[str, str]:
    """The first of all runs that an experiment sweeps over."""
    swept = settings(experiment).get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: str(values).split(",")[0] for key, values in swept.items()}


def has_words(given: dict[str, str]) -> bool:
    """Whether a run's tokens are words, to which a size of vocabulary means nothing."""
    experiment = settings(given["experiment"]) if "experiment" in given else {}
    by_experiment = experiment.get("data", {}).get("tokenizer")
    return given.get("data.tokenizer", by_experiment) == "word"


def small(command: tuple[str, ...]) -> tuple[str, ...]:
    """The same command on a tiny model, its files in HOME."""
    flags_of_xla, _, app, *arguments = command
    flags = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if app == "train":
        given = (
            first(given["experiment"]) | given | TRAIN if "experiment" in given else given | TRAIN
        )
        given.pop("run", None)
        if has_words(given):
            given.pop("data.vocab_size")
        given |= {"runs": "HOME/made"}
        if given.get("norm") == "rmsnorm,mediannorm":  # the one that the page adds
            given["norm"] = "rmsnorm,layernorm"
    elif app == "evaluate" and given:
        places = {"checkpoint": "HOME/run", "runs": "HOME/runs", "model": "hf:HOME/hf"}
        given |= {k: v for k, v in places.items() if k in given} | EVALUATE | {"out": "HOME/out"}
    elif app == "evaluate.figures":
        flags = ["HOME/out"]
    elif app == "evaluate.report":
        flags = ["HOME/out", "HOME/run", "--out", "HOME/report.html"]
    elif app == "train.remove":
        given |= {"checkpoint": "HOME/run", "steps": 1, "out": "HOME/removed"}
    return (flags_of_xla, "-m", app, *flags, *sorted(f"{k}={v}" for k, v in given.items()))


COMMANDS = commands()
SMALL = list(dict.fromkeys(map(small, COMMANDS)))
"""Many differ in nothing but the model and the text."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A trained run, a directory of runs, a Hugging Face checkpoint, and records to draw from."""
    folder = tmp_path_factory.mktemp("commands")
    norm = {"type": "layernorm"}
    train(tiny_config(folder / "runs", norm=norm, run=str(folder / "run"), steps=4))
    train(tiny_config(folder / "runs", norm=norm, steps=4))
    write_folder(folder / "hf", CONFIGS["llama"], tensors("llama"))
    run(["", "-m", "evaluate", "checkpoint=HOME/run", "out=HOME/out"], folder)
    return folder


def run(arguments: Sequence[str], home: Path) -> None:
    arguments = [a.replace("HOME", str(home)) for a in arguments]
    environment = os.environ | {"NORMLAB_TRACEBACK": "1", "XLA_FLAGS": arguments.pop(0)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_there_are_commands_of_both_applications_with_loops_unrolled():
    assert {c[2] for c in COMMANDS} >= {"train", "evaluate", "evaluate.figures", "train.remove"}
    assert not any("$" in argument for command in COMMANDS for argument in command)


@pytest.mark.system
@pytest.mark.parametrize("command", SMALL, ids=" ".join)
def test_it_runs(command, home):
    run(command, home)
