"""One block: attention, then MLP, each in its residual wrapper."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float

from normlab.model.attention import Attention
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.mlp import MLP
from normlab.model.placement import PlacementConfig, Wiring
from normlab.model.residual import MakeNorm, MakeNorms, Residual


class Block(nnx.Module):
    """Two residual sublayers; `layer` is its place in the model, from 0."""

    def __init__(
        self,
        config: ModelConfig,
        placement: PlacementConfig,
        make_norms: MakeNorms,
        layer: int,
        gain: float | None,
        rngs: nnx.Rngs,
    ):
        def wrap(sublayer: str, build: Callable[[Wiring, MakeNorm], nnx.Module]) -> Residual:
            wiring = placement.wiring(sublayer, layer, config.layers)
            make_norm = make_norms(wiring.sites, f"blocks.{layer}.{sublayer}")
            branch = build(wiring, make_norm)
            return Residual(branch, wiring, make_norm, config.width, gain, config.dropout)

        local = config.local(layer)
        self.attention = wrap("attention", lambda w, make: Attention(config, w, make, local, rngs))
        self.mlp = wrap("mlp", lambda w, make: MLP(config, w, make, rngs))

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The stream after this block."""
        return self.mlp(self.attention(x, context), context)
