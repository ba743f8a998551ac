"""One norm on rows of JAX's, in one compiled program for all sites of its kind."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.model import Context
from normlab.norms import Norm, Site
from normlab.numerics import Arithmetic, RangeCounts, arithmetic

SITE = Site("torch", "norm")
"""That of every norm while it computes, so that a program knows no name."""
PLAIN = arithmetic("fp32")


class Asked(NamedTuple):
    """What a compiled program depends on beside its norm and its shapes."""

    precision: Arithmetic
    observe: bool
    edge: float | None


@partial(jax.jit, static_argnums=(0, 1))
def _computed(
    graphdef: nnx.GraphDef, asked: Asked, params: Any, scales: dict[str, Any], x: Array
) -> tuple[Array, dict[str, RangeCounts], dict[str, Any]]:
    context = Context(asked.precision, scales, observe=asked.observe, edge=asked.edge)
    y = context.norm(nnx.merge(graphdef, params), x)
    return y, context.observed, context.stored


class NormCall:
    """`Context.norm` of one norm, called outside of any other program.

    Args:
        norm: with the name of its site in the PyTorch model.
    """

    def __init__(self, norm: Norm):
        self.name, self._norm = norm.site.name, norm
        self._graphdef = nnx.graphdef(type(norm)(norm.width, SITE, norm.config))
        self._params = nnx.state(norm)

    def __call__(self, x: Float[Array, "*batch d"], context: Context) -> Float[Array, "*batch d"]:
        """The rows as `context` wants them; what it observes is written down in it."""
        name, given = self.name, context.scales
        if self._norm.weight is None:  # whose width its rows tell
            self._norm.width = x.shape[-1]
        kept = bool(context.keep_fp32.get(name, False))
        scales = {SITE.name: given[name]} if name in given and not kept else {}
        precision = PLAIN if kept else context.precision
        asked = Asked(precision, context.observe, context.edge)
        y, observed, stored = jax.block_until_ready(
            _computed(self._graphdef, asked, self._params, scales, x)
        )
        for seen in observed.values():
            before = context.observed.get(name)
            context.observed[name] = seen if before is None else before + seen
        if context.capture:  # a copy: PyTorch may write to its tensor afterwards
            parts = [context.inputs[name]] if name in context.inputs else []
            context.inputs[name] = jnp.concatenate([*parts, jnp.array(x, jnp.float32)], axis=1)
        if context.edge is not None:
            call = unused(f"{name}.in", context).removesuffix(".in")
            context.stores(f"{call}.in", x)
            jax.block_until_ready(context.stored)
            context.stored |= {k.replace(SITE.name, call, 1): v for k, v in stored.items()}
        return y


def unused(name: str, context: Context) -> str:
    """The name for a further tensor: of a module that is called again, its number goes before."""
    again = (f"{n}:{name}" for n in range(2, len(context.stored) + 2))
    return name if name not in context.stored else next(n for n in again if n not in context.stored)
