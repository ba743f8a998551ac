"""What every norm has in common: its site, its config, its gain and bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.config import knob
from normlab.numerics import Accumulator
from normlab.registry import Registry

norms: Registry[type["Norm"]] = Registry("norm", package="normlab.norms")
"""Every norm type by name. A file put into this package registers its classes by itself."""


@dataclass(frozen=True)
class Site:
    """Where in a transformer a norm sits.

    Args:
        kind: norm_in, norm_out, norm_skip, norm_embed, norm_final, norm_qk or norm_inner.
        name: its path in the model, unique: "blocks.3.attention.norm_in", "norm_final".
    """

    kind: str
    name: str

    @property
    def branch(self) -> str | None:
        """The sublayer it belongs to: "attention", "mlp", or None outside the blocks."""
        parts = self.name.split(".")
        return parts[2] if parts[0] == "blocks" else None


@dataclass(frozen=True)
class NormConfig:
    """What every norm type's config has; each type's own `Config` extends it."""

    type: str = knob("rmsnorm", "norm type, a registered name (set by norm=NAME)")

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> Any:
        """The config class of the type that `values` names (see `normlab.config.build`)."""
        return norms[values.get("type", cls.type)].Config


class Norm(nnx.Module):
    """A map of rows x ∈ R^d that keeps their shape: the base class of every norm type.

    A subclass registers itself (`@norms.register("name")`), brings a frozen dataclass as `Config`
    and implements `__call__`. It is built for a width (d) and a `Site`; its parameters start at
    values that depend on nothing else.
    """

    Config: ClassVar[type[NormConfig]] = NormConfig
    has_statistic: ClassVar[bool] = True
    """Whether a sum over the row is accumulated, so that a precision means something."""

    def __init__(self, width: int, site: Site, config: Any):
        self.width = width
        self.site = site
        self.config = config
        self.gain = nnx.Param(jnp.ones(width)) if getattr(config, "scale", False) else None
        self.bias = nnx.Param(jnp.zeros(width)) if getattr(config, "bias", False) else None

    def __call__(self, x: Float[Array, "*batch d"], acc: Accumulator) -> Float[Array, "*batch d"]:
        """The normalized rows; `acc` accumulates their statistic in the precision asked for."""
        raise NotImplementedError

    def affine(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """γ ⊙ y + β, each where the config has it."""
        if self.gain is not None:
            y = y * self.gain[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y

    @classmethod
    def embed_scale(cls, config: Any, width: int) -> float | None:
        """Initial value of a learned scalar on the embedding, where the type prescribes one."""
        return None

    @classmethod
    def branch_gain(cls, config: Any) -> float | None:
        """Initial value of a learned scalar on each residual branch, where the type has one."""
        return None
