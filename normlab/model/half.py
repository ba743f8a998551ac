"""What a half-precision runtime keeps in its format beside the tensors that a model passes on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from normlab.norms import Norm
from normlab.numerics import FloatFormat
from normlab.numerics.formats import round_to


def half_weights(model: nnx.Module, to: FloatFormat) -> Any:
    """The model's state with every weight outside its norms rounded to the format.

    PyTorch's `model.half()` rounds norms' parameters too. Published checkpoints hold those in 16
    bits already, Gemma's as w of γ = 1 + w, which is γ here. What a unit makes of γ is said by a
    datapath.
    """
    norms = [path for path, node in nnx.iter_graph(model) if isinstance(node, Norm)]
    flat = nnx.to_flat_state(nnx.state(model))
    kept = {path: leaf for path, leaf in flat if any(path[: len(n)] == n for n in norms)}
    rest = {path: leaf for path, leaf in flat if path not in kept}
    return nnx.from_flat_state(kept | _rounded(rest, to))


@partial(jax.jit, static_argnums=1)
def _rounded(params: Any, to: FloatFormat) -> Any:
    return jax.tree.map(lambda leaf: round_to(leaf, to), params)


def stored_attention(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    *,
    mask: Bool[Array, "l s"],
    scale: float,
    cap: float | None,
    stores: Callable[[str, Array], Array],
) -> Float[Array, "b l h k"]:
    """softmax(scale·QKᵀ)V whose products, scores and probabilities `stores` holds one by one.

    As the eager attention of `transformers` has it: the products are stored before they are scaled,
    the softmax is float32, and the mask is added to the scores. So a product that overflows behind
    the mask is infinite there, too, and its row NaN. A fused kernel keeps its scores in float32.
    """
    k, v = (jnp.repeat(t, q.shape[2] // t.shape[2], axis=2) for t in (k, v))
    products = stores(".products", jnp.einsum("bqhk,bshk->bqhs", q, k))
    scores = stores(".scores", products * scale)
    if cap is not None:
        scores = stores(".scores", cap * stores(".tanh", jnp.tanh(stores(".scores", scores / cap))))
    unseen = ~mask[:, None] & (scores < jnp.inf)
    chances = jax.nn.softmax(jnp.where(unseen, -jnp.inf, scores), axis=-1)
    return jnp.einsum("bqhs,bshk->bqhk", stores(".probabilities", chances), v)
