"""One walk through a transformer, in the order of its forward pass, that every rule shares."""

from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.model.placement import Residual
from normlab.norms import Norm

R = TypeVar("R")


class Walker(Protocol[R]):
    """What a rule knows about rows (an R), and how each part of a model changes that."""

    def stem(self, model: Transformer) -> R:
        """The rows that leave the embedding, before any norm."""

    def size(self, rows: R, norm: Norm) -> float:
        """The scale for a norm that these rows enter."""

    def head_sizes(self, rows: R, linear: Linear, norm: Norm) -> np.ndarray:
        """The same for the queries or keys that `linear` makes: a head (norm.width) a number."""

    def normed(self, rows: R, norm: Norm) -> R:
        """The rows that leave a norm."""

    def fork(self, rows: R) -> R:
        """The stream where a branch leaves it: what the branch knows of the way around it."""

    def attention(self, rows: R, branch: Attention) -> R:
        """The rows that leave attention."""

    def mlp(self, rows: R, branch: MLP) -> R:
        """The rows that leave an MLP."""

    def add(self, stream: R, branch: R, gain: float) -> R:
        """The sum, stream + gain · branch."""


class _Walk(Generic[R]):
    def __init__(self, walker: Walker[R]):
        self.walker = walker
        self.scales: dict[str, Any] = {}

    def through(self, norm: Norm | None, rows: R) -> R:
        if norm is None:
            return rows
        self.scales[norm.site.name] = self.walker.size(rows, norm)
        return self.walker.normed(rows, norm)

    def branch(self, branch: Any, rows: R) -> R:
        if isinstance(branch, MLP):
            return self.walker.mlp(rows, branch)
        for norm, linear in ((branch.norm_q, branch.query), (branch.norm_k, branch.key)):
            if norm is not None:
                sizes = self.walker.head_sizes(rows, linear, norm)
                self.scales[norm.site.name] = sizes[:, None] if len(sizes) > 1 else sizes[0]
        return self.walker.attention(rows, branch)

    def residual(self, part: Residual, stream: R) -> R:
        forked = self.walker.fork(stream)
        rows = self.branch(part.branch, self.through(part.norm_in, forked))
        rows = self.through(part.norm_out, rows)
        gain = 1.0 if part.branch_gain is None else float(part.branch_gain[...])
        return self.through(part.norm_skip, self.walker.add(stream, rows, gain))


def walk(model: Transformer, walker: Walker[R]) -> dict[str, Any]:
    """The scale of each norm by site name: a number, or [heads, 1] at queries and keys."""
    going = _Walk(walker)
    stream = going.through(model.norm_embed, walker.stem(model))
    for block in model.blocks:
        stream = going.residual(block.attention, stream)
        stream = going.residual(block.mlp, stream)
    going.through(model.norm_final, stream)
    return going.scales
