"""Where norms sit: the placement table, and the residual wrapper that reads it."""

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.config import check, knob
from normlab.model.context import Context
from normlab.norms import Norm, Site
from normlab.registry import Registry, choice

SITES = ("norm_in", "norm_out", "norm_skip", "norm_embed", "norm_final", "norm_qk")


@dataclass(frozen=True)
class Placement:
    """One row of the table: the sites that hold a norm, and where the row comes from."""

    sites: frozenset[str]
    source: str

    def __post_init__(self) -> None:
        for site in self.sites:
            choice("site", site, SITES)


placements: Registry[Placement] = Registry("placement")
"""Every placement by name."""


def _row(name: str, source: str, *sites: str) -> None:
    placements.register(name)(Placement(frozenset(sites), source))


_row("pre", "Xiong et al. 2020, arXiv:2002.04745: x + F(N(x))", "norm_in", "norm_final")
_row("post", "Vaswani et al. 2017, arXiv:1706.03762: N(x + F(x))", "norm_skip")
_row(
    "peri",
    "Kim et al. 2025, arXiv:2502.02732: x + N(F(N(x)))",
    "norm_in",
    "norm_out",
    "norm_final",
)
_row(
    "reordered",
    "OLMo 2, arXiv:2501.00656, section 3.2: x + N(F(x)); there with norm_qk over all heads",
    "norm_out",
    "norm_final",
)


@dataclass(frozen=True)
class PlacementConfig:
    """Which row of the table, and the sites that any row may add."""

    type: str = knob("pre", "placement, a registered name (set by placement=NAME)")
    norm_embed: bool = knob(False, "a norm on the embedding too (optional in Peri-LN)")
    norm_qk: bool = knob(False, "a norm on each head's queries and keys too, before positions")

    norm_qk_full: bool = knob(False, "that norm takes all heads as one row (OLMo 2)")

    def __post_init__(self) -> None:
        choice("placement", self.type, placements)
        check(
            self.norm_qk or not self.norm_qk_full,
            "placement.norm_qk_full = True means nothing without placement.norm_qk=true",
        )

    def has(self, kind: str) -> bool:
        """Whether there is a norm at this kind of site."""
        return kind in placements[self.type].sites or getattr(self, kind, False)


class MakeNorm(Protocol):
    """(kind of site, name of what it sits in, width) → the norm there, or None without one.

    Queries and keys give the width of a head and the number of `heads`.
    """

    def __call__(self, kind: str, parent: str, width: int, heads: int = 1) -> Norm | None: ...


def norm_maker(norm: type[Norm], config: object, placement: PlacementConfig) -> MakeNorm:
    """What builds every norm of a model: `norm` where the placement has a norm, else None."""

    def make(kind: str, parent: str, width: int, heads: int = 1) -> Norm | None:
        if not placement.has(kind):
            return None
        name = f"{parent}.{kind}" if parent else kind
        return norm(width * (heads if placement.norm_qk_full else 1), Site(kind, name), config)

    return make


class Residual(nnx.Module):
    """A sublayer and its way around: skip(x + g·out(F(in(x)))), each part where there is one.

    Serves attention and MLP alike. Every placement is a choice of which of in, out and skip are
    norms; g is a learned scalar where the norm type has one (see `Norm.branch_gain`).
    """

    def __init__(
        self,
        branch: nnx.Module,
        make_norm: MakeNorm,
        name: str,
        width: int,
        gain: float | None,
        dropout: float,
    ):
        self.branch = branch
        self.norm_in = make_norm("norm_in", name, width)
        self.norm_out = make_norm("norm_out", name, width)
        self.norm_skip = make_norm("norm_skip", name, width)
        self.branch_gain = None if gain is None else nnx.Param(jnp.float32(gain))
        self.dropout = dropout

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The stream after this sublayer."""
        h = self.branch(context.norm(self.norm_in, x), context)
        h = context.norm(self.norm_out, h)
        if self.branch_gain is not None:
            h = h * self.branch_gain[...]
        return context.norm(self.norm_skip, x + context.dropout(h, self.dropout))
