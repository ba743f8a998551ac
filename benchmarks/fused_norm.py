"""LayerNorm and RMSNorm as one Pallas kernel forward and one backward.

A program takes a block of rows, reads each element once and writes it once: statistic and output in
one pass over memory. Rows are padded to a power of two, which Triton asks for and which is what
pairwise summation does anyway. On a CPU the kernels are interpreted.

It lies beside the benchmarks, not in the library, because it wins nowhere that was measured: on a
CPU there is nothing to win, and it has never run on a GPU (whether Triton compiles it isn't known).
What is known: forward, low-precision sums and backward are right in interpret mode (tests). Norms
are left to XLA's own fusion; where `kernel_speed.py` shows a win, this file belongs in `normlab/`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float

from normlab.config import require
from normlab.numerics import round_to
from normlab.numerics.exact import no_contract
from normlab.registry import choice

ACCUMULATORS = ("fp32", "fp16:pairwise")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is fixed when a kernel is compiled."""

    eps: float
    center: bool
    precision: str
    width: int
    block: int
    interpret: bool


def fused_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"],
    bias: Float[Array, " d"],
    eps: float = 1e-5,
    *,
    center: bool = False,
    precision: str = "fp32",
    block: int = 8,
    interpret: bool | None = None,
) -> Float[Array, "*batch d"]:
    """(x − μ) / √(mean (x − μ)² + ε) ⊙ γ + β; μ = 0 without `center`. Differentiable.

    The derivative is that of the formula with the accumulated statistic in it, as everywhere in
    `normlab.numerics`. Liger-Kernel (Hsu et al. 2024, arXiv:2410.10989) has the same two passes:
    dx = r·(g − mean g − x̂·mean(g ⊙ x̂)) with g = dy ⊙ γ, r the inverse root, and without mean g
    where nothing is centred.

    Args:
        x: rows; taken to float32, and the result back to their dtype.
        weight: γ.
        bias: β.
        eps: ε.
        center: LayerNorm rather than RMSNorm.
        precision: `fp32`, or `fp16:pairwise`: mean and sum of squares with a rounding after each
            square and each add, bit for bit `numerics.accumulate` and `numerics.sum_of_squares`.
        block: rows a program, a power of two.
        interpret: run without a compiler; None: everywhere but on a GPU.
    """
    choice("precision of the fused norm", precision, ACCUMULATORS)
    require(block >= 1 and block & (block - 1) == 0, f"block = {block}: expected a power of two")
    d = x.shape[-1]
    if interpret is None:
        interpret = jax.default_backend() != "gpu"
    plan = _Plan(eps, center, precision, d, block, interpret)
    rows = x.reshape(-1, d).astype(jnp.float32)
    padded = [(0, -rows.shape[0] % block), (0, _padded(d) - d)]
    wide = [jnp.pad(p.astype(jnp.float32), padded[1])[None] for p in (weight, bias)]
    y = _fused(plan, jnp.pad(rows, padded), *wide)
    return y[: rows.shape[0], :d].reshape(x.shape).astype(x.dtype)


def _padded(d: int) -> int:
    return 1 << (d - 1).bit_length()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(plan: _Plan, x: Array, weight: Array, bias: Array) -> Array:
    return _forward(plan, x, weight, bias)[0]


def _forward(plan: _Plan, x: Array, weight: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    column = jax.ShapeDtypeStruct((x.shape[0], 1), jnp.float32)
    y, mean, inverse = _call(
        functools.partial(_forward_kernel, plan),
        plan,
        [x, weight, bias],
        [jax.ShapeDtypeStruct(x.shape, jnp.float32), column, column],
    )
    return y, (x, weight, mean, inverse)


def _backward(plan: _Plan, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, weight, mean, inverse = saved
    # One row of sums a program; the few rows are added up by XLA.
    partial = jax.ShapeDtypeStruct((x.shape[0] // plan.block, x.shape[1]), jnp.float32)
    dx, dgain, dbias = _call(
        functools.partial(_backward_kernel, plan),
        plan,
        [x, dy, weight, mean, inverse],
        [jax.ShapeDtypeStruct(x.shape, jnp.float32), partial, partial],
    )
    return dx, dgain.sum(0, keepdims=True), dbias.sum(0, keepdims=True)


_fused.defvjp(_forward, _backward)


def _call(kernel: Callable, plan: _Plan, inputs: list[Array], outputs: list) -> list[Array]:
    """The kernel over blocks of rows: arrays with fewer rows have one row a program, or one."""
    rows = inputs[0].shape[0]

    def spec(shape: tuple[int, ...]) -> pl.BlockSpec:
        if shape[0] == rows:
            return pl.BlockSpec((plan.block, shape[1]), lambda i: (i, 0))
        if shape[0] == rows // plan.block and shape[0] > 1:
            return pl.BlockSpec((1, shape[1]), lambda i: (i, 0))
        return pl.BlockSpec((1, shape[1]), lambda i: (0, 0))

    return pl.pallas_call(
        kernel,
        grid=(rows // plan.block,),
        in_specs=[spec(array.shape) for array in inputs],
        out_specs=[spec(array.shape) for array in outputs],
        out_shape=outputs,
        interpret=plan.interpret,
    )(*inputs)


def _forward_kernel(plan, x_ref, gain_ref, bias_ref, y_ref, mean_ref, inverse_ref) -> None:
    x = x_ref[...]
    mean = jnp.zeros((x.shape[0], 1), jnp.float32)
    if plan.center:
        mean = no_contract(_sum(plan, x) * (1.0 / plan.width))
    z = _inside(plan, x - mean) if plan.center else x
    mean_square = no_contract(_sum(plan, z * z) * (1.0 / plan.width))
    inverse = lax.rsqrt(mean_square + plan.eps)
    y_ref[...] = z * inverse * gain_ref[...] + bias_ref[...]
    mean_ref[...] = mean
    inverse_ref[...] = inverse


def _backward_kernel(
    plan, x_ref, dy_ref, gain_ref, mean_ref, inverse_ref, dx_ref, dgain_ref, dbias_ref
) -> None:
    dy, inverse = dy_ref[...], inverse_ref[...]
    normalized = _inside(plan, x_ref[...] - mean_ref[...]) * inverse
    g = dy * gain_ref[...]
    dx = g - normalized * (jnp.sum(g * normalized, axis=1, keepdims=True) / plan.width)
    if plan.center:
        dx = dx - jnp.sum(_inside(plan, dx), axis=1, keepdims=True) / plan.width
    dx_ref[...] = _inside(plan, dx * inverse)
    dgain_ref[...] = jnp.sum(dy * normalized, axis=0, keepdims=True)
    dbias_ref[...] = jnp.sum(dy, axis=0, keepdims=True)


def _inside(plan: _Plan, x: Array) -> Array:
    """The padding kept at zero."""
    if x.shape[1] == plan.width:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) < plan.width, x, 0.0)


def _sum(plan: _Plan, terms: Array) -> Array:
    """Each row's sum, [rows, 1], in the plan's precision."""
    if plan.precision == "fp32":
        return jnp.sum(terms, axis=1, keepdims=True)
    terms = round_to(terms, "fp16")
    while terms.shape[1] > 1:
        # Of two halves float32 holds the sum to 24 bits, enough that rounding it again is exact.
        pairs = terms.reshape(terms.shape[0], -1, 2)
        terms = round_to(jnp.sum(pairs, axis=2), "fp16")
    return terms
