"""The kernel that is probed: a black box on rows, and what was seen of it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from normlab.config import require
from normlab.registry import choice

DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
BITS = {"fp32": 24, "fp16": 11, "bf16": 8}
"""Bits of a significand, the first one included."""
Function = Callable[[np.ndarray, np.ndarray, float], Any]


@dataclass(frozen=True)
class Seen:
    """Rows that a kernel was given, with γ and ε of each, and what it made of them.

    Args:
        x: [n, d], float32 that hold values of the kernel's format.
        weight: γ as stored, [n, d].
        eps: [n, 1].
        y: [n, d].
    """

    x: np.ndarray
    weight: np.ndarray
    eps: np.ndarray
    y: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[Seen]") -> "Seen":
        """All of them, one after another."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, rows: Any) -> "Seen":
        """Some of the rows."""
        return Seen(self.x[rows], self.weight[rows], self.eps[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Kernel:
    """`f(x, weight, eps)` on rows [n, d] of a format, and how many rows it was asked for.

    Args:
        f: takes NumPy arrays x [n, d] and weight [d] of the dtype, and ε; gives [n, d].
        d: the width.
        dtype: the format of x and weight: fp32, fp16 or bf16.
        name: what reports call it.
        batch: rows in each of its calls, zeros filling the last; None: as many as are asked for.
        rows: it was asked for so many.
    """

    f: Function
    d: int
    dtype: str = "fp32"
    name: str = "kernel"
    batch: int | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        choice("dtype of a kernel", self.dtype, DTYPES)
        require(self.d >= 8, f"d = {self.d}: expected at least 8, for rows that tell orders apart")

    def cast(self, x: Any) -> np.ndarray:
        """The nearest values of the kernel's format, in float32."""
        with np.errstate(all="ignore"):
            return np.asarray(x, np.float32).astype(DTYPES[self.dtype]).astype(np.float32)

    def __call__(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        """What it makes of rows, in float32."""
        if self.batch is not None and len(x) != self.batch:
            return self._in_batches(x, weight, eps, self.batch)
        dtype = DTYPES[self.dtype]
        with np.errstate(all="ignore"):
            made = np.asarray(self.f(np.asarray(x).astype(dtype), weight.astype(dtype), eps))
        require(
            made.shape == x.shape,
            f"{self.name}: gave the shape {made.shape} for rows {x.shape}; expected the same",
        )
        self.rows += len(x)
        return made.astype(np.float32)

    def _in_batches(self, x: np.ndarray, weight: np.ndarray, eps: float, size: int) -> np.ndarray:
        full = np.concatenate([x, np.zeros((-len(x) % size, x.shape[-1]), x.dtype)])
        parts = [self(full[i : i + size], weight, eps) for i in range(0, len(full), size)]
        return np.concatenate(parts)[: len(x)]
