"""An unfinished evaluation on disk: what its first batches gave, so that it can go on."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

EVERY = 60.0
"""Seconds between two files."""


class PartialResults:
    """Results of an evaluation's first batches, in a directory that goes when it is finished.

    A file holds the leaves of some batches, stacked, and is named by the number of batches before
    it; it is whole or not there. One that can't be read ends what is taken, and is replaced. What
    is done within `EVERY` seconds is never written.

    Args:
        directory: of this evaluation alone; its name has to tell all that the results depend on.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.done: list[list[np.ndarray]] = []
        self._fresh: list[list[np.ndarray]] = []
        self._written = time.monotonic()
        while more := self._read(len(self.done)):
            self.done += more

    def add(self, result: Any) -> None:
        """The next batch's result, a pytree of arrays on the host."""
        self._fresh.append(jax.tree.leaves(result))
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def remove(self) -> None:
        """Take the directory away: the evaluation is finished."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, before: int) -> Path:
        return self.directory / f"{before:08d}.npz"

    def _read(self, before: int) -> list[list[np.ndarray]]:
        try:
            with self._path(before).open("rb") as opened, np.load(opened) as file:
                stacks = [file[name] for name in file.files]
        except (OSError, ValueError, EOFError, BadZipFile):
            return []
        return [list(leaves) for leaves in zip(*stacks, strict=True)]

    def _write(self) -> None:
        path = self._path(len(self.done))
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        with suppress(FileNotFoundError):  # another process was done with the same and removed it
            with half.open("wb") as file:
                np.savez(file, *(np.stack(leaves) for leaves in zip(*self._fresh, strict=True)))
            half.replace(path)
        self.done += self._fresh
        self._fresh, self._written = [], time.monotonic()
