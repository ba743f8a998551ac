"""The registry of scale rules, and the one function that applies them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from normlab.model import TokenModel, Transformer
from normlab.norms import all_norms
from normlab.registry import Registry
from normlab.scaling.invariance import RuleDoesNotApply, check_invariant

Scale = Float[Array, "#heads #one"] | Callable[[Array], Array]
"""A float32 scalar, [heads, 1] at a query/key norm, or (dynamic rules) rows [*b d] → [*b 1]."""

Rule = Callable[..., Mapping[str, Any]]
"""(model) → scale by site; or (model, calibration), for a rule that looks at text."""

scale_rules: Registry[Rule] = Registry("scale rule", package="normlab.scaling")
"""Every scale rule by name. A file put into this package registers its rules by itself."""


def needs_calibration(rule: str) -> bool:
    """Whether the rule looks at text: whether its function has a parameter `calibration`."""
    return "calibration" in inspect.signature(scale_rules[rule]).parameters


def reads_norms_only(rule: str) -> bool:
    """Whether the rule serves any `TokenModel`, as the type of its parameter `model` says."""
    return inspect.signature(scale_rules[rule]).parameters["model"].annotation is TokenModel


def scales(
    model: TokenModel,
    rule: str,
    *,
    pow2: bool = False,
    calibration: Int[Array, "w l"] | None = None,
) -> dict[str, Scale]:
    """The scale s of every norm with a statistic: a norm divides its input by s, and ε by s².

    Args:
        model: its weights are read, on the device where they are.
        rule: a registered name.
        pow2: round each scale to the nearest power of two, so that the division is exact.
        calibration: windows of tokens, for the rules that look at text.

    Returns:
        By site name: a float32 scalar, or [heads, 1] at query and key norms, where the rule tells
        heads apart. For a dynamic rule it is a function of the rows: a pytree, so that the
        dictionary can be an argument of a jitted function. Empty where no norm has a statistic.

    Raises:
        ValueError: an unknown rule, or no calibration for a rule that needs it.
        RuleDoesNotApply: a rule that reads weights, of a model that is no `Transformer`; a norm
            whose output depends on its scale; or a scale that is negative or not finite in float32.
            (A rule's 0 says that all rows are zero; it becomes 1.)
    """
    function = scale_rules[rule]
    if not any(norm.has_statistic for norm in all_norms(model)):
        return {}
    if not isinstance(model, Transformer) and not reads_norms_only(rule):
        able = sorted(name for name in scale_rules if reads_norms_only(name))
        raise RuleDoesNotApply(
            f"scale rule {rule!r} reads weights by the names of a Transformer: expected one that "
            f"reads rows ({', '.join(able)})"
        )
    check_invariant(model)
    if not needs_calibration(rule):
        found = function(model)
    elif calibration is None:
        raise ValueError(f"scale rule {rule!r} looks at text: pass calibration tokens [w, l]")
    elif np.ndim(calibration) != 2:
        shape = list(np.shape(calibration))
        raise ValueError(f"calibration tokens of shape {shape}: expected windows of them, [w, l]")
    else:
        found = function(model, calibration)
    return {site: _finished(s, pow2, f"{rule} at {site}") for site, s in found.items()}


def _finished(scale: Any, pow2: bool, what: str) -> Scale:
    if callable(scale):
        return Partial(_rounded, Partial(scale)) if pow2 else Partial(scale)
    values = np.asarray(scale)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not (np.isfinite(narrow) & (narrow >= 0)).all():
        bad = values[~(np.isfinite(narrow) & (narrow >= 0))].flat[0]
        raise RuleDoesNotApply(
            f"scale {what} = {bad}: expected finite float32s, none negative; a weight is not "
            "finite, or rows grow beyond float32. row_max needs no scale in advance"
        )
    s = jnp.asarray(np.where(narrow > 0, narrow, np.float32(1)))
    return power_of_two(s) if pow2 else s


def _rounded(scale: Callable[[Array], Array], x: Array) -> Array:
    return power_of_two(scale(x))


def power_of_two(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The power of two nearest to s > 0 in the logarithm: 2^round(log₂ s), exactly."""
    return jnp.ldexp(jnp.ones_like(s), jnp.round(jnp.log2(s)).astype(jnp.int32))
