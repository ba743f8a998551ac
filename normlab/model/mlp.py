"""The position-wise MLP, plain or gated."""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.linear import Linear

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """F(xE)G, or gated (F(xE) ⊙ xB)G (Shazeer 2020, arXiv:2002.05202).

    E is `gate` [d, m], B is `up` [d, m], G is `down` [m, d]: the letters of the SLaNC paper. A
    plain MLP has no `up`.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c, m = config, config.hidden_size
        out_std = c.std / math.sqrt(2 * c.layers)
        self.activation = c.activation
        self.gate = Linear(c.width, m, bias=c.bias, std=c.std, rngs=rngs)
        up = Linear(c.width, m, bias=c.bias, std=c.std, rngs=rngs) if c.gated else None
        self.up = up
        self.down = Linear(m, c.width, bias=c.bias, std=out_std, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The branch's output."""
        h = FUNCTIONS[self.activation](self.gate(x))
        if self.up is not None:
            h = h * self.up(x)
        return self.down(h)
