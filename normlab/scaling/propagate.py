"""One walk through a transformer, in the order of its forward pass, that every rule shares."""

from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from normlab.model import Transformer
from normlab.model.attention import Attention, normed_maps
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.model.residual import Residual
from normlab.norms import Norm, all_norms
from normlab.scaling.invariance import RuleDoesNotApply

R = TypeVar("R")


class Propagator(Protocol[R]):
    """What a rule knows about rows (an R), and how each part of a model changes that."""

    def embed_tokens(self, model: Transformer) -> R:
        """The rows that leave the embedding, before any norm."""

    def size(self, rows: R, norm: Norm) -> float:
        """The scale for a norm that these rows enter."""

    def head_sizes(self, rows: R, linear: Linear, norm: Norm) -> np.ndarray:
        """The same for queries, keys or values, as `linear` makes them: a head a number."""

    def normed(self, rows: R, norm: Norm) -> R:
        """The rows that leave a norm."""

    def times(self, rows: R, factor: float) -> R:
        """The rows by a constant of the placement."""

    def fork(self, rows: R) -> R:
        """The stream where a branch leaves it: what the branch knows of the way around it."""

    def inner(self, rows: R, branch: Attention | MLP) -> R:
        """The rows before the output map: heads side by side (norm_v after them), or hidden."""

    def out(self, rows: R, branch: Attention | MLP) -> R:
        """Those rows, with or without a norm between, through the output map."""

    def add(self, stream: R, branch: R, gamma: float) -> R:
        """The sum, stream + weight · branch."""


class _Walk(Generic[R]):
    def __init__(self, propagator: Propagator[R]):
        self.propagator = propagator
        self.scales: dict[str, Any] = {}

    def through(self, norm: Norm | None, rows: R) -> R:
        if norm is None:
            return rows
        self.scales[norm.site.name] = self.propagator.size(rows, norm)
        return self.propagator.normed(rows, norm)

    def branch(self, branch: Any, rows: R) -> R:
        for norm, linear in normed_maps(branch) if isinstance(branch, Attention) else ():
            if not getattr(linear, "scaled", True):
                raise RuleDoesNotApply(
                    f"{norm.site.name} reads rows that 'cancel' left unnormalized: expected a rule "
                    "that looks at rows, such as random_tokens, calibrated or row_max"
                )
            sizes = self.propagator.head_sizes(rows, linear, norm)
            self.scales[norm.site.name] = sizes[:, None] if len(sizes) > 1 else sizes[0]
        rows = self.through(branch.sub_norm, self.propagator.inner(rows, branch))
        return self.propagator.out(rows, branch)

    def residual(self, part: Residual, stream: R, entered: R) -> R:
        """The stream after a sublayer; a parallel branch is taken to follow its sum."""
        read = entered if part.parallel else stream
        rows = self.through(part.norm_in, self.propagator.fork(read))
        rows = self.branch(part.branch, self.times(rows, part.scale_in))
        rows = self.through(part.norm_out, rows)
        gamma = 1.0 if part.branch_gain is None else float(part.branch_gain[...])
        # αx + gF as α(x + (g/α)F): only the sum knows how the branch follows the stream.
        total = self.propagator.add(stream, rows, gamma * part.factor / part.alpha)
        return self.through(part.post_norm, self.times(total, part.alpha))

    def times(self, rows: R, factor: float) -> R:
        return rows if factor == 1.0 else self.propagator.times(rows, factor)


def propagate(model: Transformer, propagator: Propagator[R]) -> dict[str, Any]:
    """The scale of each norm by site name: a number, or [heads, 1] at queries, keys and values.

    Raises:
        RuleDoesNotApply: a norm of queries, keys or values after none ('cancel'), or a norm
            without a statistic beside others that have one: its rows have no known length.
    """
    frozen = [norm for norm in all_norms(model) if not norm.has_statistic]
    if frozen and len(frozen) < len(all_norms(model)):
        raise RuleDoesNotApply(
            f"{frozen[0].site.name} has no statistic, and rows after it have no length that "
            "the weights tell: expected a rule that looks at rows, such as random_tokens, "
            "calibrated or row_max"
        )
    going = _Walk(propagator)
    stream = going.through(model.norm_embed, propagator.embed_tokens(model))
    for block in model.each_block():
        entered = stream
        for part in (block.attention, block.mlp):
            stream = going.residual(part, stream, entered)
    going.through(model.norm_final, stream)
    return going.scales
