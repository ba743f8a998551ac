"""Causal self-attention."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from normlab.config import require
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.half import stored_attention
from normlab.model.keys import Keys
from normlab.model.linear import Linear
from normlab.model.placement import ResidualConfig
from normlab.model.residual import MakeNorm
from normlab.norms import Norm

QUERIES = 256
"""So many share one product with their keys. On a CPU 128 are about as fast, 512 take 1.0 to 1.8
times as long (windows of 512 and 2,048, heads of SmolLM2-135M, Gemma-3-270M, Llama-2-7b)."""

BLOCKS = 8
"""Into more than so many blocks queries aren't divided, as each is compiled by itself."""


def rotate(
    x: Float[Array, "b l h k"],
    theta: float,
    divisors: Sequence[float] = (),
    turned: int | None = None,
    holds: Callable[[Array], Array] = lambda step: step,
    factor: float = 1.0,
) -> Float[Array, "b l h k"]:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), element i paired with i + k/2.

    This is the pairing of GPT-NeoX and of Llama's published weights in Hugging Face's layout.
    `divisors` stretch the frequencies one by one, as models for long contexts have it. With
    `turned` only so many elements turn, the first ones, in pairs among themselves. Cosines, sines
    and their products are what `holds` makes of them. What turns is `factor` times as long (YaRN,
    arXiv:2309.00071, section 3.4).
    """
    size = x.shape[-1] if turned is None else turned
    half = size // 2
    # In float64, once: an error of a frequency is multiplied by the position.
    frequency = theta ** (-np.arange(half) / half) / np.array(divisors or 1.0)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequency.astype(np.float32)
    both = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    cos, sin = (holds(part if factor == 1.0 else part * factor) for part in both)
    a, b, rest = x[..., :half], x[..., half:size], x[..., size:]
    turns = [holds(a * cos) - holds(b * sin), holds(b * cos) + holds(a * sin), rest]
    return jnp.concatenate(turns, axis=-1).astype(x.dtype)


def soft_cap(x: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """c·tanh(x/c), within ±c (Gemma 2, arXiv:2408.00118, section 2); `x` without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def spans(length: int, window: int | None = None) -> list[tuple[slice, slice]]:
    """Queries that are taken together, each with the keys that a causal mask lets any of them see.

    The other scores would be masked: at 2,048 tokens that is 7 of 16. Up to `QUERIES` all are taken
    at once.
    """
    size = max(QUERIES, -(-length // BLOCKS))
    starts = range(0, length, size)
    ends = (min(start + size, length) for start in starts)
    return [
        (slice(start, end), slice(max(0, start + 1 - (window or length)), end))
        for start, end in zip(starts, ends, strict=True)
    ]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def scaled_attention(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    mask: Bool[Array, "1 1 l s"],
    scale: float,
    cap: float | None = None,
) -> Float[Array, "b l h k"]:
    """softmax(scale·QKᵀ)V, its scores soft-capped if asked, with a gradient written out.

    The queries of all heads that share their keys are rows of one product, so that no key is
    repeated. On a CPU this takes 0.6 to 0.9 of the time of `jax.nn.dot_product_attention`, and the
    gradient half that of the one that JAX derives: that one sums over the scores where Σ dP·P =
    Σ dO·O is a sum over the head, and turns the scores around for two of the products. The
    softmax's division is of the head's rows here, not of the scores (as in FlashAttention, Dao et
    al. 2022, arXiv:2205.14135).
    """
    return _attend(q, k, v, mask, scale, cap)[0]


def _grouped(t: Float[Array, "b l h k"], groups: int) -> Float[Array, "b g n k"]:
    """The rows of the heads of each group one after another: n = (h / g) · l."""
    b, length, heads, size = t.shape
    apart = t.reshape(b, length, groups, heads // groups, size)
    return apart.transpose(0, 2, 3, 1, 4).reshape(b, groups, -1, size)


def _ungrouped(t: Float[Array, "b g n k"], length: int) -> Float[Array, "b l h k"]:
    b, groups, rows, size = t.shape
    apart = t.reshape(b, groups, rows // length, length, size)
    return apart.transpose(0, 3, 1, 2, 4).reshape(b, length, -1, size)


def _attend(
    q: Array, k: Array, v: Array, mask: Array, scale: float, cap: float | None
) -> tuple[Array, Any]:
    """`scaled_attention`, and what its gradient takes."""
    length, groups, wide = q.shape[1], k.shape[2], jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = _grouped(q, groups), k.swapaxes(1, 2), v.swapaxes(1, 2)
    products = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=wide)
    heads = soft_cap(products.reshape(*k.shape[:2], -1, length, k.shape[2]) * scale, cap)
    scores = jnp.where(mask[:, :, None], heads, -jnp.inf).reshape(products.shape)
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    over, e = 1 / e.sum(-1, keepdims=True), e.astype(q.dtype)
    out = (jnp.matmul(e, v, preferred_element_type=wide) * over).astype(q.dtype)
    slope = scale if cap is None else scale * (1 - (heads / cap) ** 2).reshape(products.shape)
    return _ungrouped(out, length), (q, k, v, e, over, out, slope)


def _attend_back(
    scale: float, cap: float | None, kept: Any, d_out: Float[Array, "b l h k"]
) -> tuple[Any, ...]:
    q, k, v, e, over, out, slope = kept
    d_rows = _grouped(d_out, k.shape[1]) * over
    inner, d_rows = jnp.sum(d_rows * out, axis=-1, keepdims=True), d_rows.astype(q.dtype)
    d_e = jnp.matmul(d_rows, v.swapaxes(2, 3), preferred_element_type=over.dtype)
    d_scores = (e * (d_e - inner) * slope).astype(q.dtype)
    d_q = d_scores @ k
    # Kept apart from what turns them, or XLA would turn the larger factor, the scores.
    d_k, d_v = jax.lax.optimization_barrier(
        (q.swapaxes(2, 3) @ d_scores, d_rows.swapaxes(2, 3) @ e)
    )
    turned = (t.transpose(0, 3, 1, 2) for t in (d_k, d_v))
    return _ungrouped(d_q, d_out.shape[1]), *turned, None


scaled_attention.defvjp(_attend, _attend_back)


class Attention(nnx.Module):
    """softmax(QKᵀ/√k) V P, with as many key/value heads as the config has.

    Weights are stored as maps of rows: queries [d, h·k], keys and values [d, g·k], out [h·k, d]. A
    `local` one attends to the config's window, itself included, with its own rotary base. The
    residual may put norms on queries, keys and values (each head, or all as one row). It may also
    put a learned factor on each head, and a norm on the heads side by side before P.
    """

    def __init__(
        self,
        config: ModelConfig,
        residual: ResidualConfig,
        make_norm: MakeNorm,
        local: bool,
        rngs: Keys,
    ):
        c, k = config, config.head_size
        bias = c.bias if c.qkv_bias is None else c.qkv_bias
        self.config, self.window = c, c.window if local else None

        def linear(name: str, n_in: int, n_out: int, bias: bool) -> Linear:
            return Linear(n_in, n_out, bias=bias, std=residual.std(name, c), rngs=rngs)

        self.query = linear("query", c.width, c.heads * k, bias)
        self.key = linear("key", c.width, c.kv * k, bias)
        self.value = linear("value", c.width, c.kv * k, bias)
        self.out = linear("out", c.heads * k, c.width, c.bias)
        self.norm_q = make_norm("norm_qk", k * (c.heads if residual.full_qk else 1), "query")
        self.norm_k = make_norm("norm_qk", k * (c.kv if residual.full_qk else 1), "key")
        self.norm_v = make_norm("norm_v", k, "value")
        require(
            not residual.rotated_qk or c.rope_factor == 1.0,
            f"model.rope_factor = {c.rope_factor:g}: the norm behind rotary positions takes it off "
            "again (placement.norm_qk_rotated); expected 1",
        )
        self.rotated_qk = residual.rotated_qk
        self.head_scale = nnx.Param(jnp.ones(c.heads)) if residual.head_scales else None
        self.sub_norm = make_norm("sub_norm", c.heads * k)

    def __call__(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """The branch's output."""
        c, (b, length, _) = self.config, x.shape
        q = context.stores(".query", self.query(x)).reshape(b, length, c.heads, c.head_size)
        k = context.stores(".key", self.key(x)).reshape(b, length, c.kv, c.head_size)
        v = context.stores(".value", self.value(x)).reshape(b, length, c.kv, c.head_size)
        for part in (
            (self._turned, self._normed) if self.rotated_qk else (self._normed, self._turned)
        ):
            q, k = part(q, k, context)
        v = context.norm(self.norm_v, v)
        h = context.stores(".heads", self._attend(q, k, v, context))
        if self.head_scale is not None:
            h = h * self.head_scale[...].astype(h.dtype)[:, None]
        return self.out(context.norm(self.sub_norm, h.reshape(b, length, c.heads * c.head_size)))

    def _normed(self, q: Array, k: Array, context: Context) -> tuple[Array, Array]:
        return self._rows(self.norm_q, q, context), self._rows(self.norm_k, k, context)

    def _turned(self, q: Array, k: Array, context: Context) -> tuple[Array, Array]:
        if self.config.positions != "rotary":
            return q, k
        q = context.stores(".query_rotated", self._rotated(q, context))
        return q, context.stores(".key_rotated", self._rotated(k, context))

    def _rows(self, norm: Norm | None, x: Array, context: Context) -> Array:
        if norm is None or norm.width == x.shape[-1]:
            return context.norm(norm, x)
        return context.norm(norm, x.reshape(*x.shape[:-2], norm.width)).reshape(x.shape)

    def _rotated(self, x: Float[Array, "b l h k"], context: Context) -> Float[Array, "b l h k"]:
        c = self.config
        if self.window is not None and c.local_rope_theta is not None:
            return rotate(x, c.local_rope_theta, turned=c.rope_dim, holds=context.holds)
        given = c.rope_theta, c.rope_divisors, c.rope_dim
        return rotate(x, *given, context.holds, c.rope_factor)

    def _attend(
        self,
        q: Float[Array, "b l h k"],
        k: Float[Array, "b l g k"],
        v: Float[Array, "b l g k"],
        context: Context,
    ) -> Float[Array, "b l h k"]:
        c = self.config
        scale = c.attention_scale or 1.0 / math.sqrt(c.head_size)
        mask = self._mask(q.shape[1])
        context.attends(q, k, scale, mask)
        if context.activations is not None:
            cap, stores = c.attention_softcap, context.stores
            return stored_attention(q, k, v, mask=mask, scale=scale, cap=cap, stores=stores)
        kernel = context.compute.attention_kernel(q.dtype, c.head_size)
        if kernel == "cudnn" and c.attention_softcap is None:
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                scale=scale,
                is_causal=c.causal,
                local_window_size=None if self.window is None else (self.window - 1, 0),
                implementation="cudnn",
            )
        blocks = spans(q.shape[1], self.window) if c.causal else [(slice(None), slice(None))]
        attended = [
            scaled_attention(
                q[:, rows],
                k[:, seen],
                v[:, seen],
                mask[None, None, rows, seen],
                scale,
                c.attention_softcap,
            )
            for rows, seen in blocks
        ]
        return jnp.concatenate(attended, axis=1)

    def _mask(self, length: int) -> Bool[Array, "l l"]:
        age = jnp.arange(length)[:, None] - jnp.arange(length)
        seen = age < (self.window or length)
        return seen & (age >= 0) if self.config.causal else seen


def normed_maps(attention: Attention) -> list[tuple[Norm, Linear]]:
    """The norms of queries, keys and values, where there are any, and what makes their rows."""
    a = attention
    pairs = ((a.norm_q, a.query), (a.norm_k, a.key), (a.norm_v, a.value))
    return [(norm, linear) for norm, linear in pairs if norm is not None]
