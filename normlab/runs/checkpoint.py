"""Checkpoints of a training run: the only file that knows Orbax (and orbax_patches.py)."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from normlab.parallel.distributed import is_main_process, on_main_process
from normlab.parallel.sharding import on_host, sharding
from normlab.runs.checkpoint_errors import CorruptCheckpointError, root, said, unread
from normlab.runs.names import from_names, to_names
from normlab.runs.orbax_patches import patch

Tree = Any
_policies = ocp.training.preservation_policies


def _merit(metrics: Any) -> float:
    return -float(metrics["valid_loss"])


def _best(found: Sequence[Any]) -> Any:
    """The checkpoint with the lowest validation loss; of equals the earliest, as the log has it."""
    return max(found, key=lambda c: (_merit(c.metrics), -c.step))


class _KeepBest:
    """Keep the best one. (Orbax's own `BestN` would keep the latest of equals.)"""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = _best(checkpoints) if checkpoints else None
        return [c is best for c in checkpoints]


_QUIET = 0.5
"""Seconds without a trace of a failed save after which it is over; all were seen within 0.02."""

_NO_MERIT = (LookupError, TypeError, ValueError)
"""What metrics that aren't those of a checkpoint do to `_merit`, or to a reader of JSON."""


def _has_merit(path: Path) -> bool:
    try:
        _merit(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError, *_NO_MERIT):
        return False  # anything else the system says is no damage: it may be another word tomorrow
    return True


def _digest(names: dict[str, Any]) -> str:
    """SHA-256 of all leaves. Orbax itself hands out a flipped bit without a word."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = on_host(names[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints in one directory: the two newest and the best by validation loss are kept.

    Saving runs in the background and is atomic: a directory without its commit mark is none. Use it
    as a context manager; leaving it waits for what is under way.

    Args:
        directory: made where it isn't there.
        keep_every: those of each so many steps are kept as well.
        writer: this process trains here, sweeps away what a killed one left half-written, and sets
            aside what can't even be listed (`set_aside_first`). A reader must not: what it finds
            half-written may be another process's save.

    Raises:
        CorruptCheckpointError: to a reader, the metrics of one can't be read.
    """

    def __init__(self, directory: Path, writer: bool = False, keep_every: int | None = None):
        patch()
        keep: list[Any] = [_policies.LatestN(2), _KeepBest()]
        keep += [_policies.EveryNSteps(keep_every)] if keep_every else []
        self._directory = directory.resolve()
        self._writer = writer
        self._saving: Any = None
        self._failed = False
        self.set_aside_first: list[Path] = []
        if writer:
            on_main_process(
                lambda: self.set_aside_first.extend(map(self._renamed, self._unlisted()))
            )
        with self._ranked():
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=writer,
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with self._written():
                try:
                    self._settle()
                finally:
                    self._checkpointer.close()
        finally:
            if self._writer and self._failed and is_main_process():
                self._sweep()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """What Orbax and what it writes by say of a full disk, as the system would say it."""
        try:
            yield
        except Exception as error:
            self._failed = True
            raise OSError(
                f"a checkpoint in {self._directory} could not be written; the ones before it are "
                f"whole, and the same command goes on from there: {said(root(error))}"
            ) from error

    @contextmanager
    def _ranked(self) -> Iterator[None]:
        """What Orbax says of metrics that can't be read, as damage."""
        try:
            yield
        except _NO_MERIT as error:
            bad = [str(self._directory / str(step)) for step in sorted(self._unlisted())]
            if not bad:
                raise
            raise CorruptCheckpointError(
                f"checkpoint {', '.join(bad)}: its metrics can't be read, so that which one is the "
                f"best isn't known ({said(error)})"
            ) from error

    def _settle(self) -> None:
        """Wait for the save under way. One that nobody asks keeps its thread and its files open."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _sweep(self) -> None:
        """Give back the room that a failed save has taken: the record needs a little of it.

        The save fails with the first of its parts. The others go on, on threads that nobody can
        wait for, and create their directories again. This ends once nothing new appears for a
        while (or nothing can be removed).
        """
        last = time.monotonic()
        while time.monotonic() < last + _QUIET:
            for half in self._directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(half, ignore_errors=True)
                last = last if half.exists() else time.monotonic()
            time.sleep(0.01)

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation loss, the earliest of equals.

        Raises:
            CorruptCheckpointError: one of them doesn't say its own.
        """
        with self._ranked():
            found = self._checkpointer.checkpoints
            return _best(found).step if found else None

    def steps(self) -> list[int]:
        """Steps of all checkpoints, the newest first."""
        return sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)

    def damaged(self) -> list[Path]:
        """Checkpoints that were set aside, now or in an earlier session."""
        return sorted(self._directory.glob("corrupt.*"))

    def save(self, step: int, params: Tree, optimizer: Tree, valid_loss: float) -> None:
        """Save both trees under `step`.

        Args:
            step: how many steps they have been trained.
            params: what was learned.
            optimizer: the optimizer's state.
            valid_loss: in nats per token; inf where it isn't known, so that it is never the best.

        Raises:
            OSError: this one, or the one before it, could not be written.
        """
        trees = {"params": to_names(params), "optimizer": to_names(optimizer)}
        digests = {name: _digest(names) for name, names in trees.items()}
        with self._written():
            self._settle()
            self._saving = self._checkpointer.save_checkpointables_async(
                step, trees, metrics={"valid_loss": valid_loss, "sha256": digests}
            )
            if self._saving is None:
                raise RuntimeError(f"Orbax did not take step {step}")

    def load(
        self, step: int, saved_as: Callable[[str], str] = str, /, **like: Tree
    ) -> dict[str, Tree]:
        """The trees saved at `step` ("params", "optimizer"), each shaped as the keyword says.

        Args:
            step: which checkpoint.
            saved_as: the name in the checkpoint of what is called so now.
            like: abstract or real trees.

        Raises:
            CorruptCheckpointError: it can't be read in these shapes, or isn't what was saved.
            OSError: this machine can't read it now (a file, rights, memory), which is no damage.
        """
        abstract = {
            name: {saved_as(k): v for k, v in _abstract(to_names(tree)).items()}
            for name, tree in like.items()
        }
        where = self._directory / str(step)
        try:
            loaded = self._checkpointer.load_checkpointables(step, abstract)
            found = {c.step: c.metrics for c in self._checkpointer.checkpoints}
        except Exception as error:  # whatever a damaged file does to Orbax and to what it reads by
            raise unread(where, error) from error
        saved = (found[step] or {}).get("sha256", {})
        for name in like:
            if name in saved and _digest(loaded[name]) != saved[name]:
                raise CorruptCheckpointError(
                    f"checkpoint {where}: its {name} are not what was saved (SHA-256 differs)"
                )
        return {name: from_names(loaded[name], tree, saved_as) for name, tree in like.items()}

    def read_back(self, step: int, **trees: Tree) -> None:
        """Load what was saved just now, as a resume would.

        Raises:
            OSError: it can't be, and so nothing that is saved there can.
        """
        with self._written():
            self._settle()
        try:
            self.load(step, **trees)
        except CorruptCheckpointError as error:
            raise OSError(
                f"what is saved in {self._directory} can't be read back, and would be lost: give "
                f"another run=DIR, of a plain path on another disk ({error})"
            ) from error

    def set_aside(self, step: int) -> Path:
        """Rename the checkpoint of `step`, so that it counts no more; where it lies now."""
        aside: list[Path] = []
        on_main_process(lambda: aside.append(self._renamed(step)))
        self._checkpointer.reload()
        return aside[0] if aside else self._directory

    def _renamed(self, step: int) -> Path:
        taken = len(list(self._directory.glob(f"corrupt.{step}*")))
        aside = self._directory / (f"corrupt.{step}" + f".{taken}" * bool(taken))
        (self._directory / str(step)).rename(aside)
        return aside

    def _unlisted(self) -> list[int]:
        """Steps whose metrics can't be read, with which Orbax refuses to list any."""
        return [
            int(where.name)
            for where in self._directory.glob("[0-9]*")
            if where.name.isdigit() and not _has_merit(where / "metrics" / "metrics")
        ]


def _abstract(names: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        k: jax.ShapeDtypeStruct(
            np.shape(v), v.dtype, sharding=getattr(v, "sharding", None) or sharding(k, np.shape(v))
        )
        for k, v in names.items()
    }
