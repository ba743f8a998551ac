"""What the scale rules read of a model: its weights as the formulas name them.

Row vectors throughout: a linear map is x ↦ xW + b. Matrices stay float32 on their device, products
are taken at full float32 precision; vectors come to the host as float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.norms import Norm, all_norms
from normlab.parallel.sharding import on_host

Vector = Float[np.ndarray, " d"]


def norms_by_site(model: nnx.Module) -> dict[str, Norm]:
    """Every norm of a model, or of a part of one, by the name of its site."""
    return {norm.site.name: norm for norm in all_norms(model)}


def kernel(linear: Linear) -> Float[Array, "i o"]:
    """W."""
    return linear.kernel[...]


def bias(linear: Linear) -> Vector:
    """b, zeros where the map has none."""
    if linear.bias is None:
        return np.zeros(linear.kernel.shape[1])
    return host(linear.bias[...])


def gamma(norm: Norm) -> Vector:
    """γ, ones where the norm has none."""
    gamma = norm.gamma()
    return np.broadcast_to(1.0 if gamma is None else host(gamma), norm.width).astype(np.float64)


def shift(norm: Norm) -> Vector:
    """β, zeros where the norm has none."""
    beta = norm.beta()
    return np.zeros(norm.width) if beta is None else host(beta)


def takes_mean_away(norm: Norm) -> bool:
    """Whether what leaves the norm is a multiple of x − μ."""
    return bool(getattr(norm.config, "center", False))


def host(x: Array) -> np.ndarray:
    """On the host, in float64."""
    return on_host(x).astype(np.float64)


def product(a: Array | np.ndarray, b: Array | np.ndarray) -> Array:
    """The matrix product in float32, without the short cuts that some devices take."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def scaled_rows(factors: Vector, matrix: Array) -> Array:
    """diag(factors) @ matrix."""
    return jnp.asarray(factors, jnp.float32)[:, None] * matrix


def values(attention: Attention) -> tuple[Float[Array, "d o"], Vector]:
    """W_V and b_V with each key/value head repeated in place, to stand beside the query heads."""
    linear = attention.value
    return repeated(kernel(linear), attention), host(repeated(bias(linear), attention))


def repeated(x: Array | np.ndarray, attention: Attention) -> Array:
    """What values have ([... kv·k]) for each query head ([... h·k])."""
    c = attention.config
    by_head = jnp.asarray(x, jnp.float32).reshape(*x.shape[:-1], c.kv, c.head_size)
    return jnp.repeat(by_head, c.heads // c.kv, axis=-2).reshape(*x.shape[:-1], -1)


def head_gains(attention: Attention) -> Vector:
    """The factor on each element of the heads side by side; ones without learned head scales."""
    c, scale = attention.config, attention.head_scale
    return np.repeat(np.ones(c.heads) if scale is None else host(scale[...]), c.head_size)


def output(branch: Attention | MLP) -> Linear:
    """The output map: P of attention, G of an MLP."""
    return branch.down if isinstance(branch, MLP) else branch.out


def tables(model: Transformer) -> list[tuple[float, Float[Array, "n d"]]]:
    """What embeddings add up: (factor, token rows) and, where there are any, learned positions."""
    learned = 1.0 if model.embed_scale is None else float(model.embed_scale[...])
    rows, factor = model.embed.embedding[...], model.config.embed_factor
    if model.embed_length is not None:  # every row has this norm, whatever is stored (FixNorm)
        rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        factor = float(model.embed_length[...])
    if model.embed_in is not None:
        rows = product(rows, kernel(model.embed_in))
    found = [(learned * factor, rows)]
    if model.positions is not None:
        found.append((learned, model.positions.embedding[...]))
    return found


def spectral_norm(matrix: Float[Array, "i o"]) -> float:
    """‖M‖₂, the largest singular value, from above and within 0.1 %.

    With A = MᵀM (or MMᵀ, the smaller) and λ its largest eigenvalue, ‖A^p‖²_F / tr A^p ≤ λ^p ≤
    ‖A^p‖_F. A is squared, and its size taken out, until the root of the upper one is within
    `CLOSE` of the lower one's, or p = 4,096, where it is by 0.1 % at most up to width 10,000.
    Power iteration comes from below and would prove no bound; a decomposition is slow on an
    accelerator.
    """
    top, log = jax.device_get(_largest(jnp.asarray(matrix, jnp.float32)))
    return float(top) * float(np.exp(0.5 * np.float64(log)))


CLOSE, SQUARINGS = 1e-6, 12


@jax.jit
def _largest(m: Float[Array, "i o"]) -> tuple[Array, Array]:
    """The largest |element|, and the logarithm of the largest eigenvalue of A without it."""
    top = jnp.max(jnp.abs(m))
    m = m / jnp.where(top > 0, top, 1)  # so that no product overflows
    gram = product(m.T, m) if m.shape[0] > m.shape[1] else product(m, m.T)

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        a, _, power = carry  # ‖a‖ is 1, so that the logarithms' difference is that of the trace
        return (jnp.log(jnp.trace(a)) * power > CLOSE) & (power > 0.5**SQUARINGS)

    def squared(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, log, power = carry
        a, power = product(a, a), power / 2
        size = jnp.linalg.norm(a)
        return a / size, log + jnp.log(size) * power, power

    norm = jnp.linalg.norm(gram)  # of zeros the logarithm is -inf, and their norm 0
    start = (gram / norm, jnp.log(norm), jnp.float32(1.0))
    return top, jax.lax.while_loop(goes_on, squared, start)[1]
