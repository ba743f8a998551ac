"""Norms in integer arithmetic, for a model that was trained with a LayerNorm or an RMSNorm.

A row is quantized by its own largest element, summed in 32-bit integers, and dequantized at the
end. All keep LayerNorm's parameters and config fields; with `center=False` each is an RMSNorm. A
precision says how a sum of floats is accumulated; these have none (`has_statistic` is False).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int32, UInt32

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.base import NormConfig, Site, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.norms.statistics import LayerNorm, LayerNormConfig
from normlab.registry import MethodCard


@dataclass(frozen=True)
class IBertConfig(LayerNormConfig):
    """How an I-BERT LayerNorm computes."""

    type: str = field("i-bert", "norm type, a registered name (set by norm=NAME)")
    bits: int = field(16, "bits of the quantized input, 2 to 24 (I-BERT's code: 22)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.bits <= 24, f"norm.bits = {self.bits}: expected 2 to 24, such as 16")


@norms.register("i-bert")
class IBertLayerNorm(LayerNorm):
    """I-BERT's integer LayerNorm (Kim et al. 2021, arXiv:2101.01321, section 3.6 and Alg. 4).

    x = S·q; y = q − round(mean q); n = Σ(y ≫ h)²; σ = ⌊√n⌋ ≪ h; out = ⌊y·⌊2³¹/σ⌋ / 2⌋ · √d/2³⁰.

    h is a shift with which n can't leave 32 bits whatever else stands in a row with this largest
    |y| (the code grows one h a layer while it trains; a sum itself may need two bits less). Each
    step is int32 or uint32 here: y·⌊2³¹/σ⌋ is halved before it can overflow, which changes no bit
    of ⌊·/2⌋.

    Where we depart from the paper: ε, which it leaves out, enters as the integer round(√ε/S). Each
    element's square grows by its square, so that `eps=0` is the paper's. S is the row's own and not
    calibrated. Weight and bias are applied in float, as β/γ fails for γ = 0. The quotient ⌊2³¹/σ⌋
    has few bits when σ, which grows with 2^bits·√d, is large: more bits are not always better.
    """

    Config: ClassVar[type[NormConfig]] = IBertConfig
    has_statistic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="I-BERT integer LayerNorm",
        formula="y = q − round(mean q); σ = ⌊√Σ(y≫h)²⌋≪h; out = ⌊y⌊2³¹/σ⌋/2⌋·√d/2³⁰ ⊙ γ + β",
        source="Kim et al. 2021, arXiv:2101.01321, section 3.6 and Alg. 4; its code in Hugging "
        "Face transformers, models/ibert/quant_modules.py",
        property="equals the same steps in unbounded integers bit for bit: nothing overflows",
        test="tests/norms/test_integer.py::test_i_bert_is_the_same_in_unbounded_integers",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        most = 32 - (width - 1).bit_length()
        require(
            config.bits <= most,
            f"norm.bits = {config.bits}: the sum of {width} such integers can overflow int32; "
            f"expected at most {most}",
        )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        return ref.affine(ref.by_row(ref.i_bert_row, x, config), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; no sum is accumulated."""
        c, d = self.config, self.width
        root = math.sqrt(c.eps)
        q, scale = quantize(x, c.bits, floor=root)
        y = q - _rounded_mean(q) if c.center else q
        eps = jnp.round(root / scale).astype(jnp.int32)
        normalized = integer_normalize(y, eps).astype(jnp.float32) * (math.sqrt(d) / 2**30)
        return self.affine(_unless_lost(normalized, scale), x, context)


def integer_normalize(
    y: Int32[Array, "*batch d"], eps: Int32[Array, "*batch 1"]
) -> Int32[Array, "*batch d"]:
    """2³⁰·y / √Σ(y² + eps²) in 32-bit integers, as the I-BERT norm has it; 0 for a row of zeros.

    |y| and eps have at most 24 bits, and d at most 2¹⁶ elements.
    """
    room = (30 - (y.shape[-1] - 1).bit_length()) // 2  # bits of an element that a sum can do with
    top = jnp.maximum(jnp.max(jnp.abs(y), axis=-1, keepdims=True), eps)
    shift = jnp.maximum(0, 32 - lax.clz(top) - room)
    short = y >> shift
    squares = jnp.sum((short * short).astype(jnp.uint32), axis=-1, keepdims=True, dtype=jnp.uint32)
    extra = (y.shape[-1] * (eps >> shift) ** 2).astype(jnp.uint32)
    std = isqrt(squares + extra) << shift.astype(jnp.uint32)
    factor = (jnp.uint32(2**31) // jnp.maximum(std, 1)).astype(jnp.uint32)
    half, odd = (factor >> 1).astype(jnp.int32), (factor & 1).astype(jnp.int32)
    return jnp.where(std > 0, y * half + ((y * odd) >> 1), 0)


def isqrt(n: UInt32[Array, "*any"], steps: int = 5) -> UInt32[Array, "*any"]:
    """⌊√n⌋ by Newton's steps in integers (I-BERT, Alg. 4): x ← ⌊(x + ⌊n/x⌋)/2⌋ while x falls.

    x starts at 2^⌈bits(n)/2⌉, which is within √n and 2√n. Without the floors four steps leave less
    than 5e-8 of relative error, 0.004 of √n < 2¹⁶. So x is ⌊√n⌋ or one more, and the fifth step
    ends it. The paper says that four are enough: they are not for 3.5 in 100,000 n (of 4·10⁸ drawn
    uniformly below 2³², 13,857).

    Args:
        n: below 2³².
        steps: stop after so many.
    """
    n = n.astype(jnp.uint32)
    x = jnp.uint32(1) << ((33 - lax.clz(n)) // 2)
    for _ in range(steps):
        x = jnp.minimum(x, (x + n // x) >> 1)
    return jnp.where(n == 0, jnp.uint32(0), x)


def quantize(
    x: Float[Array, "*batch d"], bits: int, floor: float = 0.0
) -> tuple[Int32[Array, "*batch d"], Float[Array, "*batch 1"]]:
    """Integers q and the row's scale S, x ≈ S·q: symmetric, |q| ≤ 2^(bits−1) − 1.

    S is the row's largest |x| (but not below `floor`) over the largest q; 1 for a row of zeros.
    """
    wide, most = x.astype(jnp.float32), 2 ** (bits - 1) - 1
    top = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1, keepdims=True), floor)
    top = jnp.where(top == 0, most, top)
    # Multiplied, as XLA would make a product of a division, but not of every one.
    q = jnp.round(wide * (most / top)).astype(jnp.int32)
    return jnp.clip(q, -most, most), top * (1.0 / most)


def _unless_lost(
    y: Float[Array, "*batch d"], scale: Float[Array, "*batch 1"]
) -> Float[Array, "*batch d"]:
    """NaN in rows that held NaN or an infinity, of which no integer tells."""
    return jnp.where(jnp.isfinite(scale), y, jnp.nan)


def _rounded_mean(q: Array) -> Array:
    d = q.shape[-1]
    return (jnp.sum(q, axis=-1, keepdims=True) + d // 2) // d


@dataclass(frozen=True)
class AILayerNormConfig(LayerNormConfig):
    """How an AILayerNorm computes."""

    type: str = field("ai-layernorm", "norm type, a registered name (set by norm=NAME)")
    factors: int = field(3, "largest power of two in an element's factor, 0 (none) to 3")
    rounding: bool = field(False, "compress to the nearest 4-bit value; false: truncate (paper)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.factors <= 3, f"norm.factors = {self.factors}: expected 0 to 3")


@norms.register("ai-layernorm")
class AILayerNorm(LayerNorm):
    """SOLE's AILayerNorm (Wang et al. 2023, arXiv:2510.17189): squares of 4-bit numbers.

    An element is X·2^a·S, X of 8 bits, a a small power of two. Its size |X| is compressed to 4 bits
    (≫ 4 from 64 on, else ≫ 2). That is squared by a table of 16 entries and shifted back (≪ 8, ≪ 4)
    and by 2a. Sums of X·2^a and of these squares give μ and σ² = E[x²] − μ², and
    y = (x − μ)/√(σ² + ε).

    Truncation makes 1/σ too large: on Gaussian rows of d = 576 by 6.2 % on average, single rows by
    4.6 to 7.8 %. It is 8.7 % (7.2 to 10.4 %) where factors let more elements fill their 8 bits.
    `rounding` leaves less than 1 % on average. Where the mean is large, E[x²] − μ² can come out
    below zero; it is taken for zero.

    Where we depart from the paper: its factors belong to channels and come from calibration (PTF,
    arXiv:2111.13824). Ours belong to elements: the smallest that holds each, which no static choice
    can better. Its table of 1/√ is not modelled.
    """

    Config: ClassVar[type[NormConfig]] = AILayerNormConfig
    has_statistic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="AILayerNorm (SOLE)",
        formula="y = (x − μ)/√(Σ4bit(x)²/d − μ² + ε) ⊙ γ + β on 8-bit x with power-of-two factors",
        source="Wang et al. 2023 (ICCAD), arXiv:2510.17189; unconfirmed in the paper itself: the "
        "compression (two third-party ports agree from 64 on; below it one has ≫ 2, as here, the "
        "other ≫ 1), table of 1/√",
        property="truncating makes 1/σ 5.5 to 6.5 % too large on average over Gaussian rows of 8 "
        "bits without factors (d = 576: single rows 4.6 to 7.8 %); rounding less than 1 %",
        test="tests/norms/test_integer.py::test_ai_layernorm_truncation_is_a_nearly_constant_gain",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        require(width < 2**16, f"width {width}: the sum of squares can overflow; expected < 65536")

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        return ref.affine(ref.by_row(ref.ai_layernorm_row, x, config), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; no sum is accumulated."""
        c, d = self.config, self.width
        whole, power, scale = factored(x, c.factors)
        mean = jnp.sum(whole, axis=-1, keepdims=True).astype(jnp.float32) / d if c.center else 0.0
        square = compressed_square(whole >> power, c.rounding) << (2 * power).astype(jnp.uint32)
        total = jnp.sum(square, axis=-1, keepdims=True, dtype=jnp.uint32).astype(jnp.float32)
        variance = jnp.maximum(total * (16.0 / d) - mean * mean, 0.0)
        eps = jnp.square(math.sqrt(c.eps) / scale)
        inverse = lax.rsqrt(variance + eps)
        return self.affine(_unless_lost((whole - mean) * inverse, scale), x, context)


def factored(
    x: Float[Array, "*batch d"], factors: int
) -> tuple[Int32[Array, "*batch d"], Int32[Array, "*batch d"], Float[Array, "*batch 1"]]:
    """8-bit integers with power-of-two factors: (X·2^a, a, S) with x ≈ X·2^a·S and |X| ≤ 127.

    a, from 0 to `factors`, is the smallest with which X fits; S is the row's own.
    """
    wide = x.astype(jnp.float32)
    top = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
    top, most = jnp.where(top == 0, 127.0, top), 127.0 * 2**factors
    steps = wide * (most / top)  # a product: see `quantize`
    size = jnp.abs(steps)
    power = sum((size > 127.5 * 2**a).astype(jnp.int32) for a in range(factors))
    power = jnp.zeros_like(wide, jnp.int32) + power
    whole = jnp.clip(jnp.round(jnp.ldexp(steps, -power)), -127, 127).astype(jnp.int32)
    return whole << power, power, top * (1.0 / most)


def compressed_square(x: Int32[Array, "*any"], rounding: bool) -> UInt32[Array, "*any"]:
    """x²/16 for |x| ≤ 127 by way of 4 bits and a table of squares; truncated or rounded to them."""
    size = jnp.abs(x)
    large = size >= 64
    shift = jnp.where(large, 4, 2)
    if rounding:
        size = size + (1 << (shift - 1))
    table = jnp.arange(16, dtype=jnp.uint32) ** 2
    return table[jnp.minimum(size >> shift, 15)] << jnp.where(large, 4, 0).astype(jnp.uint32)
