"""Every `python -m` command of README and the documentation runs, on something small."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from normlab.evaluation.config import EvaluateConfig
from normlab.results.record import GOOD
from normlab.results.settings import OF_A_TEXT
from normlab.runs.run import Run, is_run
from normlab.training.trainer import train
from tests.conftest import TINY
from tests.support import claims
from tests.support.byte_level import bpe
from tests.support.command_line import ROOT, documented
from tests.support.runs import tiny_config
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder

pytestmark = pytest.mark.system

TRAIN = {
    **{f"model.{name}": value for name, value in TINY.items()}, "model.layers": 1,
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


def own_text(given: dict[str, str]) -> dict[str, str]:
    """A text of one's own, as a command names it, where it lies here."""
    named = {"text": "data.path", "hf": "data.name", "wikitext103": "data.name"}
    kind = given.get("data", "")
    return {"data": kind, named[kind]: "HOME/texts"} if kind in named else {}


def has_words(given: dict[str, str]) -> bool:
    """Whether a run's vocabulary isn't merges, so that a size of it means nothing."""
    experiment = settings(given["experiment"]) if "experiment" in given else {}
    by_experiment = experiment.get("data", {}).get("tokenizer")
    return given.get("data.tokenizer", by_experiment) not in ("bpe", None)


def small(command: tuple[str, ...]) -> tuple[str, ...]:
    """The same command on a tiny model, its files in HOME."""
    flags_of_xla, _, app, *arguments = command
    flags = [a for a in arguments if "=" not in a]
    verb = flags[0] if flags and flags[0].isalpha() else None
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if app == "train" and verb is None and "--help" not in flags:
        swept, text = first(given["experiment"]) if "experiment" in given else {}, own_text(given)
        given = {k: v for k, v in given.items() if k not in OF_A_TEXT}
        given = swept | given | TRAIN | {"runs": "HOME/made"}
        given.pop("run", None)
        if has_words(given):
            given.pop("data.vocab_size")
        if "init" in given:  # which brings the shape
            given = {k: v for k, v in given.items() if not k.startswith("model.")}
            given["init"] = "hf:HOME/hf"
            if "norm_at" in given:  # sites of a deep model
                given["norm_at"] = "[{sites: norm_final, norm: dyt}]"
        given |= text
        if given.get("norm") == "rmsnorm,mediannorm":  # the one that the page adds
            given |= {"norm": "rmsnorm,layernorm", "seed": "0,1"}
    elif app == "evaluate" and verb is None and given:
        given.setdefault("precision", f"[{','.join(EvaluateConfig().precision)}]")
        places = {"run": "HOME/run", "runs": "HOME/runs", "pretrained": "hf:HOME/hf"}
        given |= {k: v for k, v in places.items() if k in given} | EVALUATE | {"out": "HOME/out"}
        if text := own_text(given):
            given |= text | {"out": "HOME/of_text"}
            given.pop("data.corpus")
    elif verb == "ranges":
        given |= {"pretrained": "hf:HOME/hf", "out": "HOME/ranges"} | EVALUATE
    elif verb == "plan":
        given |= {"pretrained": "hf:HOME/hf", "out": "HOME/plan", "search_windows": 1} | EVALUATE
    elif verb == "claims":
        out = ["--run", "--out", "HOME/claims"] if "--run" in flags else []
        page = ["--page", "HOME/verdicts.md"] if "--page" in flags else []
        flags = ["claims", *(["HOME/mine.yaml"] if out else []), *out, *page]
    elif verb in ("figures", "show"):
        flags = [*flags[:-1], "HOME/out"]
    elif verb == "report":
        flags = ["report", "HOME/out", "HOME/run", "--out", "HOME/report.html"]
    elif verb == "golden":
        given |= {"pretrained": "hf:HOME/hf", "rows": "8", "data.corpus": "embedded"}
        given |= {"out": f"HOME/golden/{given['datapath']}"}
    elif verb == "export":
        places = {"run": "HOME/run", "pretrained": "hf:HOME/hf"}
        given |= {k: v for k, v in places.items() if k in given}
        given |= {"max_windows": 2, "window": 32, "data.corpus": "embedded"}
        told = "-".join(f"{k}-{given[k]}" for k in sorted(given) if "/" not in str(given[k]))
        given |= {"out": f"HOME/exported/{told}"}
    elif verb == "probe":
        flags, given = ["probe", "flax.nnx:RMSNorm"], given | {"d": 16}
    elif verb == "tune":
        given |= TRAIN | {"runs": "HOME/made"}
    elif verb == "remove":
        given |= {"run": "HOME/run", "steps": 1, "out": "HOME/removed"}
    if given.get("data.tokenizer") == "hf:DIR":
        given["data.tokenizer"] = "hf:HOME/hf"
    last = sorted(given, key=lambda name: (name == "precision", name))
    return (flags_of_xla, "-m", app, *flags, *(f"{name}={given[name]}" for name in last))


def fewer(precisions: Iterable[str]) -> list[str]:
    """Of precisions so many that each format with its order, and each rule, is there."""
    kept: dict[str, set[str]] = {}
    for text in precisions:
        if not set(text.split("+")) <= set().union(*kept.values()):
            kept[text] = set(text.split("+"))
    return list(kept)


def merged(commands: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Commands that differ in nothing but their precisions as one, with all of these.

    So too experiments that are the same run, but for its norm and its rate, once they are small.
    The documents tests compose every command as it is written.
    """
    found: dict[tuple[str, ...], tuple[list[str], dict[str, None]]] = {}
    for command in commands:
        rest = [a for a in command if not a.startswith("precision=")]
        own = ("experiment=", "norm", "placement=", "optimizer.lr=", "seed=")
        experiment = any(a.startswith("experiment=") for a in rest)
        key = tuple(a for a in rest if not experiment or not a.startswith(own))
        _, held = found.setdefault(key, (rest, {}))
        for text in command[len(rest) :]:
            held |= dict.fromkeys(re.split(r",(?![^(]*\))", text.removeprefix("precision=")[1:-1]))
    return [
        (*rest, f"precision=[{','.join(fewer(held))}]") if held else tuple(rest)
        for rest, held in found.values()
    ]


SMALL = merged(map(small, documented()))
"""Many differ in nothing but the model and the text."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A trained run, a directory of runs, a Hugging Face checkpoint, and records to draw from."""
    folder = tmp_path_factory.mktemp("commands")
    fields = {"norm": {"type": "rmsnorm"}, "model": TINY | {"layers": 1}, "steps": 4}
    train(tiny_config(folder / "runs", run=str(folder / "run"), **fields))
    train(tiny_config(folder / "runs", **fields))
    write_folder(folder / "hf", CONFIGS["llama"], tensors("llama"))
    bpe("gpt-2", 2).save(str(folder / "hf" / "tokenizer.json"))  # a GGUF file wants merges
    claims.written(folder / "mine.yaml", common=f"{claims.TINY} runs={folder}/claimed")
    (folder / "texts").mkdir()
    text = "".join(f"Document {i} has some words of its own.\n\n" for i in range(400))
    (folder / "texts" / "notes.txt").write_text(text)
    run(["", "-m", "evaluate", "run=HOME/run", "out=HOME/out"], folder)
    return folder


def run(arguments: Sequence[str], home: Path) -> None:
    arguments = [a.replace("HOME", str(home)) for a in arguments]
    environment = os.environ | {"NORMLAB_TRACEBACK": "1", "XLA_FLAGS": arguments.pop(0)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("command", SMALL, ids=" ".join)
def test_it_runs(command, home, tmp_path):
    run([a.replace("HOME/made", str(tmp_path)) for a in command], home)
    if command[2] == "train" and not {"--help", "remove", "tune"} & set(command):
        values = [a.partition("=")[2].split(",") for a in command if "[" not in a]
        runs = [Run(path) for path in tmp_path.glob("*") if is_run(path)]
        assert len(runs) == math.prod(map(len, values))
        assert {r.record["state"] for r in runs} <= {*GOOD}


@pytest.mark.parametrize("arguments", [["evaluate", "--help"], ["evaluate", "list", "norms"]])
def test_a_terminal_without_unicode_gets_question_marks(arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
