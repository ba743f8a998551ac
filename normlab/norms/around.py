"""What a norm type changes in the model around it, and how it starts there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from normlab.norms.base import norms


@dataclass(frozen=True)
class Around:
    """Initial values in a model; by default nothing is changed.

    Args:
        embed_scale: of a learned scalar on the embedding; None: there is none.
        embed_length: of the learned length of every embedding row; None: there is none.
        branch_gain: of a learned scalar on each residual branch; None: there is none.
        factors: of the initial weights, by matrix: query, key, value, out, gate, up, down, embed,
            head (one of the model's own); 1 where it isn't named.
        unshrunk: for output maps (out, down) of blocks whose placement starts them smaller by
            √branches (see `ResidualConfig.std`), the factor that takes that back; 1: leave it.
    """

    embed_scale: float | None = None
    embed_length: float | None = None
    branch_gain: float | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    unshrunk: float = 1.0

    def factor(self, matrix: str, shrunk: bool = True) -> float:
        """Of the initial weights of `matrix`, in a block whose output maps are `shrunk` or not."""
        undone = self.unshrunk if shrunk and matrix in ("out", "down") else 1.0
        return self.factors.get(matrix, 1.0) * undone


@runtime_checkable
class ChangesModel(Protocol):
    """A norm type that changes more than its sites: it says how."""

    @classmethod
    def around(cls, config: Any, width: int, branches: int) -> Around:
        """Initial values.

        Args:
            config: of the norm.
            width: d, of the model.
            branches: residual branches of the model, two a block.
        """


def around(config: Any, width: int, branches: int) -> Around:
    """What the norm type of `config` changes in a model of this size."""
    kind = norms[config.type]
    return kind.around(config, width, branches) if isinstance(kind, ChangesModel) else Around()
