"""Norms that approximate LayerNorm's arithmetic, for a model that was trained with the exact one.

All keep LayerNorm's parameters and config fields. With `center=False` each approximates RMSNorm.
See `normlab.transforms.swap`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.base import NormConfig, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.norms.statistics import LayerNorm, LayerNormConfig, RMSNormConfig
from normlab.numerics.eps import Step
from normlab.registry import MethodCard

MAGIC = 0x5F3759DF


@dataclass(frozen=True)
class L1Config(LayerNormConfig):
    """How an L1 LayerNorm computes."""

    type: str = field("l1", "norm type, a registered name (set by norm=NAME)")


@norms.register("l1")
class L1LayerNorm(LayerNorm):
    """L1 LayerNorm (Lin et al. 2020, arXiv:2009.08034): no squares.

    y = (x − μ) / √((C·mean|x − μ|)² + ε) ⊙ γ + β, with C = √(π/2).

    C makes the divisor equal σ for a Gaussian row, where E|x − μ| = σ√(2/π). That C, and how the
    paper has ε, are unconfirmed: here ε acts as in the LayerNorm that this one stands for. The
    statistic is Σ|x − μ|, accumulated as the precision says; what range counts call ‖x − μ‖ is
    Euclid's all the same.
    """

    Config: ClassVar[type[NormConfig]] = L1Config
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="L1 LayerNorm",
        formula="y = (x − μ) / √((√(π/2)·mean|x − μ|)² + ε) ⊙ γ + β",
        source="Lin et al. 2020, arXiv:2009.08034; unconfirmed: the constant √(π/2), and ε",
        property="equals LayerNorm in the mean over Gaussian rows, whatever their shift and scale, "
        "and not on rows of another shape",
        test="tests/norms/test_approximate.py::test_l1_is_layernorm_on_gaussian_rows_only",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        y = ref.centred(x, config)
        size = np.sqrt(np.pi / 2) * np.abs(y).mean(-1, keepdims=True)
        return ref.affine(y / np.sqrt(size**2 + config.eps), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        c, acc = self.config, context.acc
        z, mean_abs = acc.deviations(x, c.center)
        square = (math.pi / 2) * (mean_abs * mean_abs)
        return self.affine(acc.over_rms(z, square, c.eps), x, context)


@dataclass(frozen=True)
class DroppedMeanConfig(LayerNormConfig):
    """How a LayerNorm without μ² in its denominator computes."""

    type: str = field("dropped-mean", "norm type, a registered name (set by norm=NAME)")


@norms.register("dropped-mean")
class DroppedMean(LayerNorm):
    """LayerNorm whose variance is taken for the mean square (Sci. China Inf. Sci. 67:200404, 2024).

    y = (x − μ) / √(mean x² + ε) ⊙ γ + β: the mean leaves the numerator only, so that Σx and Σx²
    need one pass. Each row comes out too small by the factor √(σ² + ε) / √(σ² + μ² + ε). The
    denominator is RMSNorm's (arXiv:1910.07467).
    """

    Config: ClassVar[type[NormConfig]] = DroppedMeanConfig
    centred_statistic: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="LayerNorm, μ² dropped",
        formula="y = (x − μ) / √(mean x² + ε) ⊙ γ + β",
        source="Hardware-oriented algorithms for softmax and layer normalization, Sci. China Inf. "
        "Sci. 67:200404 (2024), abstract; unconfirmed: its joint root and division, left out here",
        property="is LayerNorm times √((σ² + ε) / (σ² + μ² + ε))",
        test="tests/norms/test_approximate.py::test_dropped_mean_shrinks_by_its_factor",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        square = (x**2).mean(-1, keepdims=True)
        return ref.affine(ref.centred(x, config) / np.sqrt(square + config.eps), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        acc = context.acc
        z, mean_square = acc.moments(x)
        centred = acc.held(z - acc.mean(z)) if self.config.center else z
        return self.affine(acc.over_rms(centred, mean_square, self.config.eps), x, context)


@dataclass(frozen=True)
class MaxRescaleConfig(LayerNormConfig):
    """How a norm that divides by the row's largest element first computes."""

    type: str = field("max-rescale", "norm type, a registered name (set by norm=NAME)")


@norms.register("max-rescale")
class MaxRescale(LayerNorm):
    """LayerNorm or RMSNorm (arXiv:1910.07467) of x/m with ε/m², m the power of two above max|x|.

    y = z / √(mean z² + ε/m²) ⊙ γ + β, z = x/m, or x/m less its mean. Exact for every m; with a
    power of two the division rounds nothing that the mean is then taken from. The sum Σ ≤ d,
    centred or not (16 times that for |x| above 2^126, where m stays: 1/m would be subnormal). That
    is how LAPACK takes a Euclidean norm (Blue 1978). It needs one more pass over the row, and ε has
    to follow: apple/coremltools#2821 left it as it was. ε/m² is at least float32's smallest normal
    value, so that a constant row comes out as 0.
    """

    Config: ClassVar[type[NormConfig]] = MaxRescaleConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="Max-rescale",
        formula="y = x/m / √(mean (x/m)² + ε/m²) ⊙ γ + β, m = 2^⌈log₂ max|x|⌉",
        source="Blue 1978 (doi:10.1145/355769.355771), LAPACK; for norms apple/coremltools#2821",
        property="equals the exact norm, with ε, on rows of any size that float32 holds, and in "
        "fp16 where the plain sum overflows",
        test="tests/norms/test_approximate.py::test_max_rescale_is_exact_and_does_not_overflow",
    )

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        c, acc = self.config, context.acc
        wide = acc.widened(x)
        largest = jnp.max(jnp.abs(acc.held(wide)), axis=-1, keepdims=True)
        normal = largest >= jnp.finfo(jnp.float32).tiny  # 1/m is finite
        above = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1])
        # Up to 2^126 1/m is normal, too. y does not depend on m, so neither does its derivative.
        m = lax.stop_gradient(jnp.where(normal, jnp.minimum(above, 2.0**126), 1.0))
        # m in place of a static scale, which on top of it would make Σ vanish
        z, mean_square = acc.scaled_by(m).moments(wide, c.center)
        # ε/m² is formed here: m² alone could leave float32
        eps = jnp.square(math.sqrt(c.eps) / m)
        eps = jnp.maximum(eps, jnp.finfo(eps.dtype).tiny) if c.eps else eps
        return self.affine(acc.scaled_by(1.0).over_rms(z, mean_square, eps), x, context)


@dataclass(frozen=True)
class DoubledConfig(RMSNormConfig):
    """How an RMSNorm on a LayerNorm unit computes; it can't centre."""

    type: str = field("doubled", "norm type, a registered name (set by norm=NAME)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.center,
            "norm.center = True: norm 'doubled' makes an RMSNorm of a LayerNorm and can't centre; "
            "expected False, or norm=layernorm",
        )


@norms.register("doubled")
class Doubled(LayerNorm):
    """RMSNorm (arXiv:1910.07467) by a unit that only knows LayerNorm.

    y = LayerNorm([x, −x])[:d] ⊙ γ + β. The doubled row has mean 0 and variance mean x², so this is
    exact, ε included. It is how RMSNorm reaches the fused LayerNorm of Apple's neural engine
    (ANEMLL). The unit's statistic is over 2d elements: Σ is twice RMSNorm's, and in a half format
    its range ends a factor √2 earlier. What range counts call ‖x‖ is the row's own.
    """

    Config: ClassVar[type[NormConfig]] = DoubledConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="[x, −x] doubling",
        formula="y = LayerNorm([x, −x])[:d] ⊙ γ + β",
        source="Anemll/Anemll (RMSNorm on the Apple neural engine); no paper",
        property="equals RMSNorm, ε included, within 1 ulp of the statistic",
        test="tests/norms/test_approximate.py::test_doubled_is_rmsnorm",
    )

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        acc = context.acc
        wide = acc.widened(x)
        both, c = jnp.concatenate([wide, -wide], axis=-1), self.config
        y = acc.normalize(both, c.eps, center=True, form=self.eps_form, row=wide)
        return self.affine(y[..., : self.width], x, context)


class ByInverseRoot(LayerNorm):
    """LayerNorm with another 1/√v, v = σ² + ε: what the types below have in common."""

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        c, acc = self.config, context.acc
        z, mean_square = acc.moments(x, c.center)
        eps = c.eps / jnp.square(jnp.asarray(acc.scale, mean_square.dtype))
        v = acc.with_eps(mean_square, eps)
        # A sum that overflowed gives 0 and a negative variance NaN, as in the exact norm, not what
        # an approximation makes of them.
        exact, good = acc.inverse_rms(mean_square, c.eps), (v >= 0) & jnp.isfinite(v)
        inverse = jnp.where(good, self.inverse_root(jnp.where(good, v, 1.0), acc.apart), exact)
        return self.affine(acc.product(z * inverse), x, context)

    def inverse_root(self, v: Float[Array, "*batch 1"], apart: Step) -> Float[Array, "*batch 1"]:
        """1/√v for v ≥ 0, as the type has it; `apart` keeps its steps from being contracted."""
        raise NotImplementedError


@dataclass(frozen=True)
class FastRsqrtConfig(LayerNormConfig):
    """How a LayerNorm with the fast inverse square root computes."""

    type: str = field("fast-rsqrt", "norm type, a registered name (set by norm=NAME)")
    steps: int = field(1, "Newton steps after the first guess")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 0, f"norm.steps = {self.steps}: expected a number ≥ 0, such as 1")


@norms.register("fast-rsqrt")
class FastRsqrt(ByInverseRoot):
    """LayerNorm by the fast inverse square root, as PIM-GPT has it (arXiv:2310.09385).

    y = a·(x − μ) ⊙ γ + β, where a → 1/√v, v = σ² + ε. The bits of v as an integer i give the first
    guess, the float with the bits 0x5f3759df − (i≫1); then a ← a·(1.5 − 0.5·v·a²), `steps` times.
    One step leaves at most 1.7524e-3 of relative error, always downwards; two leave 4.8e-6.
    """

    Config: ClassVar[type[NormConfig]] = FastRsqrtConfig
    unit_rows: ClassVar[bool] = False  # without a step, up to 3.4 % over
    card: ClassVar[MethodCard] = MethodCard(
        title="Fast inverse square root",
        formula="a = float(0x5f3759df − (bits(v) ≫ 1)), then a ← a(1.5 − 0.5 v a²); y = (x − μ) a",
        source="Quake III Arena (1999); in norms PIM-GPT, Wu et al. 2023, arXiv:2310.09385; "
        "unconfirmed: PIM-GPT's number of steps",
        property="relative error of 1/√v at most 1.7524e-3 after one step, for every v",
        test="tests/norms/test_approximate.py::test_fast_rsqrt_error_after_each_step",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        y = ref.by_root(x, config, lambda v: ref.fast_rsqrt(v, config.steps))
        return ref.affine(y, config, params)

    def inverse_root(self, v: Float[Array, "*batch 1"], apart: Step) -> Float[Array, "*batch 1"]:
        """The guess from the bits, those of float32, and Newton's steps."""
        a = _guess(v.astype(jnp.float32)).astype(v.dtype)
        for _ in range(self.config.steps):
            a = a * (1.5 - apart(0.5 * v * a * a))
        return a


@jax.custom_jvp
def _guess(v: Array) -> Array:
    return _float(MAGIC - (_bits(v) >> 1))


@_guess.defjvp
def _guess_slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The guess is linear in v between two powers of two of either; this is its slope there."""
    (v,), (t,) = primals, tangents
    a = _guess(v)
    return a, -0.5 * _power(a) / _power(v) * t


def _power(v: Array) -> Array:
    """2^e for v = f·2^e, 1 ≤ f < 2."""
    return _float(_bits(v) & 0x7F800000)


def _bits(v: Array) -> Array:
    return lax.bitcast_convert_type(v, jnp.int32)


def _float(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


@dataclass(frozen=True)
class IterL2Config(LayerNormConfig):
    """How an IterL2Norm computes."""

    type: str = field("iterl2", "norm type, a registered name (set by norm=NAME)")
    steps: int = field(5, "iterations")
    rate: float = field(0.345, "c in λ = c·2^−e, e the exponent of m; 0 < c < 0.5")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 0, f"norm.steps = {self.steps}: expected a number ≥ 0, such as 5")
        require(
            0 < self.rate < 0.5,
            f"norm.rate = {self.rate}: expected 0 < rate < 0.5, or λm ≥ 1 diverges; such as 0.345",
        )


@norms.register("iterl2")
class IterL2Norm(ByInverseRoot):
    """IterL2Norm (Ye et al. 2024, arXiv:2412.04778): no division and no root.

    y = √d·a·(x − μ) ⊙ γ + β, where a → 1/√m by a ← a + λ·m·a·(1 − m·a²), with m = ‖x − μ‖² + dε.
    For m = f·2^e, 1 ≤ f < 2, it starts at a = 2^(−(e+1)/2) and has λ = c·2^−e.

    With u = a√m it is u ← u + λm·u(1 − u²): near 1 the error shrinks by 1 − 2λm a step. The factor
    λm = c·f is within 0.345 and 0.69. With λm = ½ it is Newton's step. In the worst case five steps
    leave 3.52e-3 of relative error, more than half an ulp of fp16; eight leave 1.1e-4.
    """

    Config: ClassVar[type[NormConfig]] = IterL2Config
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="IterL2Norm",
        formula="y = √d·a·(x − μ) ⊙ γ + β; a ← a + λma(1 − ma²), m = ‖x − μ‖² + dε",
        source="Ye et al. 2024, arXiv:2412.04778; unconfirmed: λ = 0.345·2^−e, the start "
        "2^(−(e+1)/2), and ε",
        property="relative error of 1/√m at most 3.52e-3 after 5 steps and 1.1e-4 after 8, "
        "over all m",
        test="tests/norms/test_approximate.py::test_iterl2_worst_error_after_so_many_steps",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        d = x.shape[-1]

        def root(v: float) -> float:
            return math.sqrt(d) * ref.iterl2(v * d, config.steps, config.rate)

        return ref.affine(ref.by_root(x, config, root), config, params)

    def inverse_root(self, v: Float[Array, "*batch 1"], apart: Step) -> Float[Array, "*batch 1"]:
        """√d·a after `steps` iterations from the exponent of m = d·v."""
        c, m = self.config, v * self.width
        exponent = jnp.frexp(m)[1] - 1
        half = -(exponent + 1)
        start = jnp.where(half % 2 == 1, jnp.asarray(math.sqrt(2), m.dtype), 1.0)
        a = jnp.ldexp(start, half // 2)
        rate = jnp.ldexp(jnp.asarray(c.rate, m.dtype), -exponent) * m
        for _ in range(c.steps):
            a = a + apart(rate * a * (1.0 - apart(m * a * a)))
        return math.sqrt(self.width) * a


@dataclass(frozen=True)
class DyadicConfig(LayerNormConfig):
    """How a LayerNorm with a dyadic multiplier computes."""

    type: str = field("dyadic", "norm type, a registered name (set by norm=NAME)")
    bits: int = field(8, "bits of the integer b in the multiplier b/2^c, 1 to 22")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.bits <= 22, f"norm.bits = {self.bits}: expected 1 to 22")


@norms.register("dyadic")
class Dyadic(ByInverseRoot):
    """LayerNorm whose row is multiplied by a dyadic number (HAWQ-V3, arXiv:2011.10680).

    y = (x − μ)·b/2^c ⊙ γ + β. 1/√(σ² + ε) is rounded to b/2^c, which integer hardware applies as a
    product and a shift. HAWQ's code takes b with 31 bits; how few do is the question that `bits`
    asks. HAWQ rescales by static factors; here the factor is the row's own. The row itself and γ
    are not quantized.
    """

    Config: ClassVar[type[NormConfig]] = DyadicConfig
    differentiable: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="Dyadic rescaling",
        formula="y = (x − μ)·b / 2^c ⊙ γ + β, b/2^c ≈ 1/√(σ² + ε)",
        source="Yao et al. 2020, arXiv:2011.10680, and batch_frexp of its code",
        property="|b/2^c − r| ≤ 2^(−c−1); on integer rows y is the integer product and shift",
        test="tests/norms/test_approximate.py::test_dyadic_on_integers_is_a_product_and_a_shift",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""

        def root(v: float) -> float:
            b, c = ref.dyadic(v**-0.5, config.bits)
            return math.ldexp(b, -c)

        return ref.affine(ref.by_root(x, config, root), config, params)

    def inverse_root(self, v: Float[Array, "*batch 1"], apart: Step) -> Float[Array, "*batch 1"]:
        """b/2^c, exact in float32."""
        b, c = dyadic(lax.rsqrt(v), self.config.bits)
        return jnp.ldexp(b.astype(jnp.float32), -c)


def dyadic(r: Float[Array, "*any"], bits: int) -> tuple[Int[Array, "*any"], Int[Array, "*any"]]:
    """The integers (b, c), 2^(bits−1) ≤ b ≤ 2^bits, with b/2^c nearest r > 0; ties up."""
    fraction, exponent = jnp.frexp(r)
    return jnp.floor(jnp.ldexp(fraction, bits) + 0.5).astype(jnp.int32), bits - exponent
