"""Where the weights of a checkpoint lie: named tensors, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float


class CheckpointError(ValueError):
    """A checkpoint that can't be loaded; the message says which file, what and why."""


class Source(Protocol):
    """Named tensors in files. Opening one reads names, shapes and types, `read` a single tensor."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, slowest axis first."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them."""

    def check(self, name: str) -> None:
        """Refuse a tensor that `read` could not bring, without reading it."""

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """One tensor in float32, dequantized where it is quantized."""
