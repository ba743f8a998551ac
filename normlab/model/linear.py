"""Linear maps, kept two-dimensional."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Module):
    """x ↦ xW + b over the last axis, with W of shape [i, o], as one product of two matrices.

    XLA's CPU backend is up to twice as slow on the gradient of a product with a batch axis than on
    the same product of two matrices. So all leading axes become one.

    Weights are rounded to the dtype of x, in which the product is taken (see `ComputeConfig`).
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float, rngs: nnx.Rngs):
        kernel = jax.nn.initializers.normal(std)(rngs.params(), (n_in, n_out), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The mapped rows."""
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])
