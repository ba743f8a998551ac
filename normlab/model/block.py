"""One block: attention, then MLP, each in its residual wrapper."""

import copy
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from normlab.model.attention import Attention
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.keys import Keys
from normlab.model.mlp import MLP
from normlab.model.placement import PlacementConfig, ResidualConfig
from normlab.model.residual import MakeNorm, MakeNorms, Residual
from normlab.norms import NormState


class Block(nnx.Module):
    """Two residual sublayers; `layer` is its place in the model, from 0."""

    def __init__(
        self,
        config: ModelConfig,
        placement: PlacementConfig,
        make_norms: MakeNorms,
        layer: int,
        gain: float | None,
        rngs: Keys,
    ):
        def wrap(
            sublayer: str, build: Callable[[ResidualConfig, MakeNorm], nnx.Module]
        ) -> Residual:
            residual = placement.residual(sublayer, layer, config.layers)
            path = f"blocks.{layer}.{sublayer}"
            make_norm = make_norms(residual.sites, path)
            branch = build(residual, make_norm)
            return Residual(branch, residual, make_norm, config, gain, path)

        local = config.local(layer)
        self.attention = wrap("attention", lambda w, make: Attention(config, w, make, local, rngs))
        self.mlp = wrap("mlp", lambda w, make: MLP(config, w, make, rngs))

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The stream after this block."""
        context.enters(x, self.attention)
        return self.mlp(self.attention(x, x, context), x, context)


Carry = tuple[Array, Any]
"""The stream, and how often something was dropped so far."""


def rematerialized(
    block: Block, x: Float[Array, "b l d"], context: Context
) -> Float[Array, "b l d"]:
    """`block(x, context)`, of which only x is kept for the way back; the rest is computed again.

    A pass that looks inside (`observe`, `capture`) has no way back, and runs as ever.
    """
    if context.observe or context.capture:
        return block(x, context)
    graphdef, state = nnx.split(block)
    run = jax.checkpoint(_pure(graphdef, context))
    (x, context.drops), kept = run((x, context.drops), state)
    nnx.update(block, kept)
    return x


def scanned(block: Block, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
    """The stream after all blocks, of which `block` holds the weights, stacked on a first axis.

    Raises:
        ValueError: the context asks for something by site, and there is one site for all layers.
    """
    if context.observe or context.capture or context.scales:
        raise ValueError(
            "a model of stacked layers knows no single site: expected neither observe, capture nor "
            "scales; take normlab.training.stacked.unstacked(model)"
        )
    graphdef, state = nnx.split(block)
    run = _pure(graphdef, context)
    if context.compute.remat:
        run = jax.checkpoint(run, prevent_cse=False)  # a loop's body is safe from it
    (x, context.drops), kept = jax.lax.scan(run, (x, context.drops), state)
    nnx.update(block, kept)
    return x


def _pure(
    graphdef: nnx.GraphDef[Block], context: Context
) -> Callable[[Carry, Any], tuple[Carry, Any]]:
    """A block as a function of its state: what goes through it, and what its norms keep."""

    def run(carry: Carry, state: Any) -> tuple[Carry, Any]:
        x, inside = carry[0], copy.copy(context)
        inside.drops = carry[1]
        block = nnx.merge(graphdef, state, copy=True)
        return (block(x, inside), inside.drops), nnx.state(block, NormState)

    return run
