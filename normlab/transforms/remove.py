"""Removal: a norm's statistic, site by site, replaced by a constant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.config import field, require
from normlab.model import Context, Transformer
from normlab.norms import Norm, NormConfig, all_norms
from normlab.norms.context import PLAIN, NormContext
from normlab.norms.statistics import LayerNorm
from normlab.numerics import Accumulator
from normlab.registry import MethodCard
from normlab.transforms.base import DoesNotApply
from normlab.transforms.surgery import is_statistical


@dataclass(frozen=True)
class FrozenConfig(NormConfig):
    """A norm whose statistic is a number."""

    type: str = field("frozen", "norm type; it stands for a LayerNorm or RMSNorm that was frozen")
    factor: float = field(1.0, "r, what 1/√(σ² + ε) was on the average")
    center: bool = field(False, "subtract the row's mean first (LayerNorm)")

    def __post_init__(self) -> None:
        require(self.factor > 0, f"norm.factor = {self.factor}: expected a number > 0")


class Frozen(Norm):
    """A norm that has lost its statistic (arXiv:2409.13710): y = r(x − μ) ⊙ γ + β, r a constant.

    It is linear, so that `fold` puts it into the maps that read it. No registered type, for no
    model starts from it: `freeze` makes it of a LayerNorm or an RMSNorm, whose γ and β it keeps.
    """

    Config: ClassVar[type[NormConfig]] = FrozenConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="norm removal by a frozen statistic",
        formula="y = r (x − μ) ⊙ γ + β, r = E[1/√(σ² + ε)] over tokens",
        source="Heimersheim 2024, arXiv:2409.13710, section 2; Baroni et al. 2025, "
        "arXiv:2507.02559; there the average is of σ",
        property="with a frozen statistic the norm is linear and folds into its readers exactly",
        test="tests/training/test_removal.py::test_a_frozen_norm_folds_away",
    )
    has_statistic: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; no sum is accumulated."""
        z = x - x.mean(axis=-1, keepdims=True) if self.config.center else x
        return self.affine(z * self.config.factor, x, context)

    def linear(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """(rγ, β): what acts on the row, or on the row less its mean where it is centred."""
        gamma, beta = self.gamma(), self.beta()
        a = jnp.ones(self.width) if gamma is None else gamma
        return a * self.config.factor, jnp.zeros(self.width) if beta is None else beta

    def fold(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """The same, where the row isn't centred: then it is the whole map."""
        return None if self.config.center else self.linear()


def removable(model: Transformer) -> list[str]:
    """Sites whose statistic can be frozen, in the order in which they are removed.

    The MLPs' first, then the attentions', the rest, and the final norm last (the order of
    arXiv:2409.13710, where the final norm is the hardest to lose).
    """
    sites = [norm.site for norm in all_norms(model) if is_statistical(norm)]

    def turn(site: Any) -> tuple[int, list[Any]]:
        kind = {"mlp": 0, "attention": 1}.get(site.branch or "", 2)
        parts = [int(p) if p.isdigit() else p for p in site.name.split(".")]
        return (3 if site.kind == "norm_final" else kind), parts

    return [site.name for site in sorted(sites, key=turn)]


def average_factors(model: Transformer, tokens: Int[Array, "b l"]) -> dict[str, float]:
    """For each removable site, the mean over all rows of 1/√(σ² + ε), the factor to freeze."""
    graphdef, params = nnx.split(model)
    sites = {n.site.name: n for n in all_norms(model) if isinstance(n, LayerNorm)}

    @jax.jit
    def run(params: Any, tokens: Array) -> dict[str, Array]:
        context = Context(capture=True)
        nnx.merge(graphdef, params)(tokens, context)
        return {name: _factor(norm, context.inputs[name]) for name, norm in sites.items()}

    return {name: float(value) for name, value in run(params, tokens).items()}


def _factor(norm: LayerNorm, x: Array) -> Array:
    acc = Accumulator()
    _, mean_square = acc.moments(x, center=norm.config.center)
    return jnp.mean(acc.inverse_rms(mean_square, norm.config.eps, norm.eps_form))


def freeze(model: Transformer, factors: Mapping[str, float]) -> Transformer:
    """A model whose norms at the given sites have these factors in place of their statistic.

    Raises:
        DoesNotApply: a site that holds no LayerNorm or RMSNorm (any more).
    """
    new = nnx.clone(model)
    there = removable(new)
    for name in factors:
        if name not in there:
            raise DoesNotApply(f"remove: no LayerNorm or RMSNorm at {name!r}; there are {there}")
    for _, owner in list(nnx.iter_graph(new)):
        for attribute, norm in _norms_of(owner):
            if norm.site.name in factors:
                setattr(owner, attribute, frozen(norm, factors[norm.site.name]))
    return new


def _norms_of(owner: Any) -> list[tuple[str, LayerNorm]]:
    if not isinstance(owner, nnx.Module):
        return []
    return [(k, v) for k, v in vars(owner).items() if is_statistical(v)]


def frozen(norm: LayerNorm, factor: float) -> Frozen:
    """The frozen form of one norm, with its γ and β."""
    made = Frozen(norm.width, norm.site, FrozenConfig(factor=factor, center=norm.config.center))
    gamma, beta = norm.gamma(), norm.beta()
    made.weight = nnx.data(None if gamma is None else nnx.Param(gamma))
    made.bias = nnx.data(None if beta is None else nnx.Param(beta))
    return made
