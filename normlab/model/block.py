"""One block: attention, then MLP, each in its residual wrapper."""

from flax import nnx
from jaxtyping import Array, Float

from normlab.model.attention import Attention
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.mlp import MLP
from normlab.model.placement import MakeNorm, Residual


class Block(nnx.Module):
    """Two residual sublayers; `layer` is its place in the model, from 0."""

    def __init__(
        self,
        config: ModelConfig,
        make_norm: MakeNorm,
        layer: int,
        gain: float | None,
        rngs: nnx.Rngs,
    ):
        def wrap(branch: nnx.Module, path: str) -> Residual:
            return Residual(branch, make_norm, path, config.width, gain, config.dropout)

        path, local = f"blocks.{layer}.attention", config.local(layer)
        self.attention = wrap(Attention(config, make_norm, path, local, rngs), path)
        self.mlp = wrap(MLP(config, rngs), f"blocks.{layer}.mlp")

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The stream after this block."""
        return self.mlp(self.attention(x, context), context)
