"""A training run's directory: what is in it, and the model that came out of it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
import yaml
from flax import nnx

from normlab.config import build, require
from normlab.data.tokenizer import load_tokenizer
from normlab.locks import HeldError, locked
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.model.language_model import LanguageModel
from normlab.norms import NormConfig
from normlab.norms.sites import NormAt
from normlab.results import renamed
from normlab.results.record import GOOD

FINAL = (*GOOD, "diverged")
"""States in which a run has ended; "running" is any other."""


class Run:
    """A run directory and the files in it.

    What it is made from: overrides.yaml (overrides as given), config.yaml (everything, resolved),
    provenance.json (code, packages, device, text), tokenizer/. What is logged: metrics.jsonl (a
    line a logged step), diagnostics.jsonl (what was seen inside the model, if asked for). Then
    checkpoints/, and record.json (state, and once it has ended its results).
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    def __getitem__(self, name: str) -> Path:
        return self.directory / name

    def write(self, name: str, content: Any) -> None:
        """Write a JSON or YAML file at once or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            text = json.dumps(content, indent=1)
        else:
            text = yaml.safe_dump(content, sort_keys=False)
        half = self[f".{name}.{os.getpid()}"]
        try:
            with named(self[name]):
                half.write_text(text, encoding="utf-8")
                half.replace(self[name])
        finally:
            half.unlink(missing_ok=True)

    def read(self, name: str) -> Any:
        """A JSON or YAML file's content; an empty dictionary where there is no such file."""
        if not self[name].exists():
            return {}
        found = self._parsed(name)
        return renamed.config(found) if name == "config.yaml" and found else found

    def _parsed(self, name: str) -> Any:
        try:
            text = self[name].read_text(encoding="utf-8")
            return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{self[name]} can't be read: {said}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: only one process trains in it. A killed one holds it no more.

        Raises:
            ValueError: another process does.
        """
        make_directory("run", self.directory)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self[".lock"], wait=False))
            except HeldError as error:
                time.sleep(1)  # who holds it says so a moment after it has it
                raise ValueError(
                    f"{self.directory} is being trained by another process "
                    f"({self.read('.holder.json').get('who', 'unknown')}); wait for it, or give "
                    f"another run=DIR ({error})"
                ) from None
            self.write(".holder.json", {"who": f"{os.getpid()} on {socket.gethostname()}"})
            yield

    @property
    def is_older(self) -> bool:
        """Whether it was saved under names that have changed: it can be read, but not resumed."""
        there = self["config.yaml"].exists()
        return there and renamed.is_older(self._parsed("config.yaml") or {})

    @property
    def record(self) -> dict[str, Any]:
        """How the run stands."""
        return self.read("record.json")

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.record.get("state") in FINAL

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged."""
        return json_lines(self["metrics.jsonl"])

    @property
    def diagnostics(self) -> list[dict[str, Any]]:
        """What was seen inside the model (training/diagnostics.py); nothing where nobody asked."""
        return json_lines(self["watch.jsonl" if self.is_older else "diagnostics.jsonl"])


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the system's say which file it is about; a full disk's doesn't."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_directory(setting: str, path: Path) -> None:
    """Make the directory that a setting names, before anything is computed for it.

    Raises:
        NotADirectoryError: a file lies there, or on the way.
        OSError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        said = f"{setting}={path}: a file lies there; expected a directory, or a new name"
        raise NotADirectoryError(said) from None


def json_lines(path: Path) -> list[dict[str, Any]]:
    """A file's lines of JSON, without the half one that a kill may leave at the end."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        bad = next(n for n, line in enumerate(lines, 1) if line == error.doc)
        raise ValueError(f"{path}, line {bad}: no JSON, {error}") from error


def is_run(directory: Path) -> bool:
    """Whether a directory is a run's."""
    return (directory / "config.yaml").exists()


def open_run(directory: str | Path) -> Run:
    """An existing run.

    Raises:
        FileNotFoundError: the directory is not one that `python -m train` has written.
    """
    path = Path(directory)
    if is_run(path):
        return Run(path)
    beside = {p.parent.name: str(p.parent) for p in sorted(path.parent.glob("*/config.yaml"))}
    near = [beside[n] for n in get_close_matches(path.name, beside, 3) or list(beside)[:3]]
    hint = f" Beside it: {', '.join(near)}." if near else ""
    if any(path.glob("*/config.yaml")):
        hint = f" It holds runs; say runs={path}, or which of them."
    raise FileNotFoundError(
        f"{path} is no run directory (it has no config.yaml, which `python -m train` writes).{hint}"
    )


def build_model(config: dict[str, Any], vocab_size: int) -> Transformer:
    """The transformer that a run's config.yaml describes, freshly initialized."""
    return Transformer(
        build(ModelConfig, config["model"], "model."),
        build(NormConfig, config["norm"], "norm."),
        build(PlacementConfig, config["placement"], "placement."),
        vocab_size,
        config["seed"],
        [build(NormAt, at, "norm_at.") for at in config.get("norm_at", ())],
    )


def steps(run: Run) -> list[int]:
    """Steps of the checkpoints that are kept, the earliest first."""
    from normlab.runs.checkpoint import Checkpoints  # Orbax, which a pretrained model doesn't need

    with Checkpoints(run["checkpoints"]) as checkpoints:
        return checkpoints.steps()[::-1]


def load(directory: str | Path, step: int | None = None) -> LanguageModel:
    """The model of a run at its best validation point.

    Args:
        directory: of the run.
        step: of another checkpoint.

    Raises:
        FileNotFoundError: no run there, or one without a checkpoint yet.
        ValueError: it was trained with JAX's 64 bits, which are off here.
    """
    run = open_run(directory)
    _check_width(run)
    config, tokenizer = run.read("config.yaml"), load_tokenizer(run["tokenizer"])
    shape = nnx.eval_shape(lambda: build_model(config, tokenizer.vocab_size))
    graphdef, params = nnx.split(shape)
    from normlab.runs.checkpoint import Checkpoints

    with Checkpoints(run["checkpoints"]) as checkpoints:
        step = checkpoints.best() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{run.directory} has no checkpoint yet")
        saved_as = renamed.older_name if run.is_older else str
        loaded = checkpoints.load(step, saved_as, params=params)["params"]
    facts = {
        "source": str(run.directory),
        "step": step,
        "config": config,
        "training": run.record,
        "training_provenance": run.read("provenance.json"),
    }
    return LanguageModel(run.directory.name, nnx.merge(graphdef, loaded), tokenizer, facts)


def _check_width(run: Run) -> None:
    sessions = run.read("provenance.json").get("sessions") or [{}]
    wide = sessions[-1].get("jax_settings", {}).get("jax_enable_x64", False)
    require(
        not wide or jax.config.values["jax_enable_x64"],
        f"{run.directory} was trained with JAX_ENABLE_X64=1: expected that in the environment",
    )


def parameters(model: nnx.Module) -> int:
    """How many numbers a model has learned."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
