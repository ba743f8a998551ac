"""Rows between PyTorch and JAX: handed over by DLPack, and how they lie in a tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import torch


def to_jax(x: torch.Tensor) -> jax.Array:
    """The tensor as an array, which shares its memory where it lies in one piece."""
    return jax.dlpack.from_dlpack(x.detach().contiguous())


def to_torch(y: jax.Array) -> torch.Tensor:
    """The array as a tensor, once it is computed."""
    return torch.from_dlpack(jax.block_until_ready(y))


@dataclass(frozen=True)
class Layout:
    """Where in a norm's input the positions of a text are, so that its rows are [b, l, *heads, d].

    Args:
        positions: by site the axis that counts them: 1 of [b, l, *heads, d], 2 of [b, heads, l, d],
            0 of [b·l, *heads, d]. The rows of any other site are [1, rows, d].
        b: sequences that are read together.
        l: tokens of each.
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    b: int = 1
    l: int = 1  # noqa: E741 (as in all shapes here)

    def rows(self, site: str, x: torch.Tensor) -> torch.Tensor:
        """The rows of a norm's input."""
        axis = self.positions.get(site)
        if axis == 1:
            return x
        if axis == 2:
            return x.transpose(1, 2)
        if axis == 0 and x.shape[0] % (self.b * self.l) == 0:
            heads = x.shape[0] // (self.b * self.l)
            return x.reshape(self.b, self.l, *((heads,) if heads > 1 else ()), *x.shape[1:])
        return x.reshape(1, -1, x.shape[-1])

    def back(self, site: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Rows where those of `x` were."""
        return y.transpose(1, 2) if self.positions.get(site) == 2 else y.reshape(x.shape)
