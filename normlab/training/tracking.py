"""Where a run's metrics go beside its own metrics.jsonl: programs that draw them.

Each is an extra of its own, is asked for by name (`tracking=[tensorboard]`), and writes to this
machine alone unless its own environment variables say otherwise.
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from normlab.parallel.distributed import is_main_process
from normlab.registry import Registry
from normlab.results.settings import digest
from normlab.runs.run import Run

PROJECT = "normlab"


class Tracker(Protocol):
    """One such program's view of one run."""

    def open(self, run: Run, config: Mapping[str, Any], step: int) -> None:
        """Begin, or go on after `step` steps: what was logged later is computed again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take what is known after `step` steps."""

    def close(self) -> None:
        """Write what isn't written."""


trackers: Registry[type[Tracker]] = Registry("tracker")
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What a tracker's extra brings, by its name."""


@contextmanager
def tracked(names: Sequence[str], run: Run, step: int) -> Iterator[list[Tracker]]:
    """The trackers named, open, and closed however the run ends; of several processes the first's.

    Raises:
        ValueError: one whose package isn't installed.
    """
    opened: list[Tracker] = []
    with ExitStack() as stack:
        for name in names if is_main_process() else ():
            tracker = trackers[name]()
            tracker.open(run, run.read("config.yaml"), step)
            stack.callback(tracker.close)
            opened.append(tracker)
        yield opened


def scalars(values: Any, path: str = "") -> dict[str, float]:
    """Nested values as trackers take them: a number each, its path with slashes; null left out."""
    if values is None:
        return {}
    if not isinstance(values, (dict, list)):
        return {path: float(values)}
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    found: dict[str, float] = {}
    for key, value in pairs:
        found |= scalars(value, f"{path}/{key}" if path else str(key))
    return found


def known_as(run: Run, config: Mapping[str, Any]) -> str:
    """A name that only sessions of one run share: its directory's, which has its config's hash.

    A directory that was given by hand may have a namesake elsewhere; its name gets the hash. Of its
    letters those stay that every tracker takes for a name, and 64 of them.
    """
    if not config.get("run"):
        return run.directory.name
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", run.directory.resolve().name)[:64]
    return f"{plain}-{digest(dict(config), None)}"


def need(extra: str) -> Any:
    """The package of a tracker, imported.

    Raises:
        ValueError: it isn't there; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(PACKAGES[extra])
    except ImportError as error:
        raise _missing(extra) from error


def check_installed(names: Sequence[str]) -> None:
    """Raise `ValueError`, as `need` does, where a tracker's package isn't there; import none."""
    for name in (n for n in names if n in PACKAGES):
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # or a folder of that name, such as wandb's own
            raise _missing(name)


def _missing(extra: str) -> ValueError:
    return ValueError(f"tracking=[{extra}] needs {PACKAGES[extra]}: pip install 'normlab[{extra}]'")


@trackers.register("tensorboard")
class TensorBoard:
    """Event files in the run's directory: `tensorboard --logdir runs`."""

    def open(self, run: Run, config: Mapping[str, Any], step: int) -> None:
        """Event files have no config; the directory beside them has."""
        made = need("tensorboard").SummaryWriter
        # The suffix keeps two sessions that begin in one second apart.
        self._writer = made(
            str(run["tensorboard"]), purge_step=step + 1, filename_suffix=f".{step}"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


@trackers.register("wandb")
class WandB:
    """Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync DIR/wandb/*`."""

    def open(self, run: Run, config: Mapping[str, Any], step: int) -> None:
        """The run's id is its name, so that all sessions are one run to the server."""
        # Else it looks up the host of its error reports, offline too; read when it is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        name = known_as(run, config)
        self._run = need("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=name,
            resume="allow",
            config=dict(config),
            dir=str(run.directory),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row; what belongs to the same step is merged."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
