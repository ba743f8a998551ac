"""The position-wise MLP, plain or gated."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.keys import Keys
from normlab.model.linear import Linear
from normlab.model.placement import ResidualConfig
from normlab.model.residual import MakeNorm

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@partial(jax.checkpoint, static_argnums=0)
def gated(activation: str, gate: Array, up: Array) -> Array:
    """F(gate) ⊙ up, whose steps are not kept for the way back: fewer passes over memory."""
    return FUNCTIONS[activation](gate) * up


class MLP(nnx.Module):
    """F(xE)G, or gated (F(xE) ⊙ xB)G (Shazeer 2020, arXiv:2002.05202).

    E is `gate` [d, m], B is `up` [d, m], G is `down` [m, d]: the letters of the SLaNC paper. A
    plain MLP has no `up`. The residual may put a norm on the hidden row before G.
    """

    def __init__(
        self, config: ModelConfig, residual: ResidualConfig, make_norm: MakeNorm, rngs: Keys
    ):
        c, m = config, config.hidden_size
        bias = c.bias if c.mlp_bias is None else c.mlp_bias

        def linear(name: str, n_in: int, n_out: int) -> Linear:
            return Linear(n_in, n_out, bias=bias, std=residual.std(name, c), rngs=rngs)

        self.activation = c.activation
        self.gate = linear("gate", c.width, m)
        self.up = linear("up", c.width, m) if c.gated else None
        self.sub_norm = make_norm("sub_norm", m)
        self.down = linear("down", m, c.width)

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The branch's output."""
        gate = context.stores(".gate", self.gate(x))
        if self.up is None:
            h = FUNCTIONS[self.activation](gate)
        elif context.stores_nothing:
            h = gated(self.activation, gate, self.up(x))
        else:
            h = context.stores(".activated", FUNCTIONS[self.activation](gate))
            h = h * context.stores(".up", self.up(x))
        h = context.stores(".hidden", h)
        return self.down(context.norm(self.sub_norm, h))
