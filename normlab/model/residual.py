"""The residual wrapper of attention and MLP alike, and what builds its norms."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.placement import ResidualConfig
from normlab.norms import Norm, NormConfig, Site, norms
from normlab.norms.sites import NormAt, norm_of


class MakeNorm(Protocol):
    """(kind of site, width, part of the sublayer) → the norm there, or None without one."""

    def __call__(self, kind: str, width: int, part: str = "") -> Norm | None: ...


MakeNorms = Callable[[frozenset[str], str], MakeNorm]
"""(kinds of site, path in the model) → what builds the norms there."""


def norm_maker(
    norm: NormConfig, norm_at: Sequence[NormAt], sites: frozenset[str], path: str
) -> MakeNorm:
    """What builds the norms of one sublayer: each site's own where `sites` has the kind."""

    def make(kind: str, width: int, part: str = "") -> Norm | None:
        if kind not in sites:
            return None
        site = Site(kind, ".".join(filter(None, (path, part, kind))))
        config = norm_of(site.name, norm, norm_at)
        return norms[config.type](width, site, config)

    return make


class Residual(nnx.Module):
    """A sublayer and its way around: skip(α·x + g·m·out(F(c·in(x)))), each part where there is one.

    Serves attention and MLP alike. A placement chooses which of in, out and skip are norms, and the
    constants α and c (`ResidualConfig`). The g is a learned scalar where the norm type has one (see
    `normlab.norms.around`), m the model's `branch_factor`. A parallel branch reads the rows that
    entered the block, and is added to the stream like the others.
    """

    def __init__(
        self,
        branch: nnx.Module,
        residual: ResidualConfig,
        make_norm: MakeNorm,
        config: ModelConfig,
        gain: float | None,
        path: str,
    ):
        width = config.width
        self.path = path
        self.branch = branch
        self.norm_in = make_norm("norm_in", width)
        self.norm_out = make_norm("norm_out", width)
        self.post_norm = make_norm("post_norm", width)
        self.branch_gain = learned(gain)
        self.alpha, self.scale_in = residual.alpha, residual.scale_in
        self.parallel, self.factor = residual.parallel, config.branch_factor
        self.dropout = config.dropout

    def __call__(
        self, x: Float[Array, "b l d"], entered: Float[Array, "b l d"], context: Context
    ) -> Float[Array, "b l d"]:
        """The stream after this sublayer, from the stream before it and before its block."""
        context.path = self.path
        h = context.norm(self.norm_in, entered if self.parallel else x)
        h = times(self.scale_in, h)
        h = context.stores(".out", self.branch(context.compute.narrow(h), context))
        h = context.holds(times(self.factor, context.norm(self.norm_out, h)))
        if self.branch_gain is not None:
            h = h * self.branch_gain[...]
        x = context.stores(".stream", times(self.alpha, x) + context.dropout(h, self.dropout))
        return context.norm(self.post_norm, x)


def learned(start: float | None) -> nnx.Param[Array] | None:
    """A scalar that is learned, or None without a start."""
    return None if start is None else nnx.Param(jnp.float32(start))


def times(factor: float, x: Array) -> Array:
    """Multiply by a constant, with no operation at all for 1."""
    return x if factor == 1.0 else factor * x
