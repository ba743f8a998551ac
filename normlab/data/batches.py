"""Batches: where in a long row of tokens each step of training reads."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from normlab.config import require


class Batch(NamedTuple):
    """Windows of tokens, and for each token the one that follows it."""

    inputs: Int32[np.ndarray, "batch window"]
    targets: Int32[np.ndarray, "batch window"]


class Rows:
    """A batch's inputs or targets, of which nothing is read but what is asked for.

    Args:
        tokens: the split.
        starts: where each row begins in it.
        window: tokens in a row.
    """

    dtype = np.dtype(np.int32)

    def __init__(
        self,
        tokens: Integer[np.ndarray, " tokens"],
        starts: Int64[np.ndarray, " batch"],
        window: int,
    ):
        self.tokens, self.starts, self.shape = tokens, starts, (len(starts), window)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: Any) -> Int32[np.ndarray, "..."]:
        """Any part that starts with rows: `rows[2:4]`, `rows[2:4, :8]`."""
        rows, *columns = part if isinstance(part, tuple) else (part,)
        places = self.starts[rows][..., None] + np.arange(self.shape[1])
        return self.tokens[places].astype(np.int32)[..., *columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)


class Batches:
    """Batches of windows of one split, each a pure function of (seed, step).

    An epoch cuts the tokens into windows that don't overlap, from a random offset, and takes
    them in a random order. What doesn't fill a batch is left out: other windows in each epoch.
    No step depends on another: step k can be had without the steps before it.

    Args:
        tokens: the split.
        batch_size: windows in a batch.
        window: tokens in a window.
        seed: another seed, another order.

    Raises:
        ValueError: sizes below 1, or a split shorter than one batch.
    """

    def __init__(
        self, tokens: Integer[np.ndarray, " tokens"], batch_size: int, window: int, seed: int
    ):
        require(batch_size >= 1, f"batch_size = {batch_size}: expected at least 1")
        require(window >= 1, f"window = {window}: expected at least 1")
        require(seed >= 0, f"seed = {seed}: expected 0 or more")
        needed = batch_size * window + 1  # each input has a target
        require(
            len(tokens) >= needed,
            f"the split has {len(tokens):,} tokens, one batch of {batch_size} windows of {window} "
            f"takes {needed:,}: use a smaller batch or window",
        )
        self.tokens, self.batch_size, self.window, self.seed = tokens, batch_size, window, seed
        # Where there is more than one batch, up to a window of tokens is kept for the offset.
        self.steps_per_epoch = max(1, (len(tokens) - window) // (batch_size * window))
        used = self.steps_per_epoch * batch_size * window
        self._offsets = min(window, len(tokens) - used)
        self._epoch, self._starts = -1, np.empty(0, np.int64)  # of the windows, as they are taken

    def at(self, step: int) -> Batch:
        """The batch of `step`, counted from 0 and on through the epochs."""
        return Batch(*map(np.asarray, self.rows(step)))

    def rows(self, step: int) -> tuple[Rows, Rows]:
        """The batch of `step` as `at` has it, unread: each process reads the rows that it needs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._starts = epoch, self._order(epoch)
        starts = self._starts[place * self.batch_size :][: self.batch_size]
        return Rows(self.tokens, starts, self.window), Rows(self.tokens, starts + 1, self.window)

    def _order(self, epoch: int) -> Int64[np.ndarray, " windows"]:
        """Where the windows of an epoch start, in the order in which they are taken."""
        rng = np.random.default_rng((self.seed, epoch))
        offset = int(rng.integers(self._offsets))
        windows = (len(self.tokens) - 1 - offset) // self.window
        return offset + rng.permutation(windows) * self.window
