"""Scales from the norms that a text makes (the dynamic calibration that SLaNC is compared with)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.model import Context, TokenModel, Transformer
from normlab.model.by_layer import ByLayer
from normlab.norms import Norm
from normlab.parallel.sharding import replicate
from normlab.scaling import weights
from normlab.scaling.moments import TINY, headroom
from normlab.scaling.rules import scale_rules


def recorded(
    model: TokenModel, tokens: Int[Array | np.ndarray, "w l"]
) -> dict[str, Float[np.ndarray, "rows #heads"]]:
    """The norm of every row that every norm sums, ‖x‖ for most (see `Norm.summed`).

    Args:
        model: run in float32, a window at a time.
        tokens: windows.

    Returns:
        By site, a row for each token (for each of its groups, where a norm sums these); a column
        for each head at query and key norms.
    """
    windows = [window[None] for window in tokens]
    with jax.default_matmul_precision("highest"):  # as in evaluation, or it is TF32
        if isinstance(model, Transformer):
            found = [seen for _, seen in ByLayer(model, head=False)(_layer, windows)]
        else:
            found = [_seen(model, window) for window in windows]
    return {site: np.concatenate([seen[site] for seen in found]) for site in found[0]}


@partial(jax.jit, static_argnums=(0, 1))
def _layer(
    call: Callable[..., Array], graphdef: nnx.GraphDef[Any], state: Any, x: Array
) -> tuple[Array, dict[str, Array]]:
    module, context = nnx.merge(graphdef, state), Context(capture=True)
    x = call(module, x, context)
    return x, replicate(_sizes(module, context))


def _seen(model: TokenModel, tokens: Int[Array, "1 l"]) -> dict[str, Array]:
    context = Context(capture=True)
    model(tokens, context)
    return _sizes(model, context)


def _sizes(module: nnx.Module, context: Context) -> dict[str, Array]:
    norms = weights.norms_by_site(module)
    return {name: _norm(x[0], norms[name]) for name, x in context.inputs.items()}


def _norm(x: Float[Array, "l *heads d"], norm: Norm) -> Float[Array, "rows #heads"]:
    rows, heads = norm.summed(x), math.prod(x.shape[1:-1])
    sizes = jnp.linalg.norm(rows.reshape(-1, rows.shape[-1]), axis=-1)
    return jnp.moveaxis(sizes.reshape(len(x), heads, -1), -1, 1).reshape(-1, heads)


def _summarized(model: TokenModel, calibration: Array, summary: Any) -> dict[str, Any]:
    found = recorded(model, calibration)
    return {site: _by_head(summary(sizes, axis=0)) for site, sizes in found.items()}


def _by_head(values: np.ndarray) -> np.ndarray:
    return values[:, None] if len(values) > 1 else values[0]


@scale_rules.register("calibrated")
def calibrated(model: TokenModel, calibration: Int[Array, "w l"]) -> dict[str, Any]:
    """The median norm at each site over the calibration tokens."""
    return _summarized(model, calibration, np.median)


@scale_rules.register("calibrated_mean")
def calibrated_mean(model: TokenModel, calibration: Int[Array, "w l"]) -> dict[str, Any]:
    """The mean norm at each site over the calibration tokens; outliers pull it up."""
    return _summarized(model, calibration, np.mean)


@scale_rules.register("calibrated_max")
def calibrated_max(model: TokenModel, calibration: Int[Array, "w l"]) -> dict[str, Any]:
    """The largest norm at each site over the calibration tokens: of each Σx² ≤ 1."""
    return _summarized(model, calibration, np.max)


@scale_rules.register("random_tokens")
def random_tokens(model: TokenModel) -> dict[str, Any]:
    """The rule to use: the middle of the norms that random tokens make in the model.

    The model reads four windows of 64 tokens, each drawn uniformly from its vocabulary with a fixed
    seed; s = √(least · largest norm)/κ, as in the rule `moments`. A norm below √(dε), a row of
    zeros for one, counts as that: ε rules such a row, whatever its sum.
    """
    shape = 4, min(64, model.max_length)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape)
    norms = weights.norms_by_site(model)

    def middle(site: str, sizes: np.ndarray) -> np.ndarray:
        width, rms = norms[site].width, norms[site].least_rms()
        sizes = np.maximum(sizes, max(math.sqrt(width) * rms, TINY))
        return np.sqrt(sizes.min(axis=0) * sizes.max(axis=0)) / headroom(width)

    return {site: _by_head(middle(site, x)) for site, x in recorded(model, tokens).items()}
