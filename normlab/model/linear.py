"""Linear maps, kept two-dimensional."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.model.keys import Keys

CACHED = 2**20
"""Bytes of a matrix that a processor's cache holds beside others."""


def turned(x: Float[Array, "n i"]) -> Float[Array, "i n"]:
    """xᵀ, laid out by itself where a product on a CPU is faster so: where the cache holds it.

    XLA's products are up to 1.4 times as fast then as with x turned as they read it. A larger one
    takes longer to turn than it saves.
    """
    small = jax.default_backend() == "cpu" and x.size * x.dtype.itemsize <= CACHED
    return jax.lax.optimization_barrier(x.T) if small else x.T


@jax.custom_vjp
def product(x: Float[Array, "n i"], w: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """xW, in whose gradient x is `turned`; maps of the same rows share one xᵀ."""
    return x @ w


def _product_back(kept: tuple[Array, Array], d: Float[Array, "n o"]) -> tuple[Array, Array]:
    x, w = kept
    return d @ w.T, turned(x) @ d


product.defvjp(lambda x, w: (x @ w, (x, w)), _product_back)


class Linear(nnx.Module):
    """x ↦ xW + b over the last axis, with W of shape [i, o], as one product of two matrices.

    XLA's CPU backend is up to twice as slow on the gradient of a product with a batch axis than on
    the same product of two matrices. So all leading axes become one.

    Weights are rounded to the dtype of x, in which the product is taken (see `ComputeConfig`).
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float, rngs: Keys):
        kernel = jax.nn.initializers.normal(std)(rngs.params(), (n_in, n_out), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The mapped rows."""
        y = product(x.reshape(-1, x.shape[-1]), self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])
