"""Float formats, and rounding float32 values to them bit for bit.

A value of a narrow format is kept as the float32 of the same value, so that every computation is
float32 arithmetic with an explicit rounding after it. Nothing here relies on a narrowing cast,
which XLA may drop (`xla_allow_excess_precision`), nor on half arithmetic, which it may contract or
regroup.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from normlab.config import require
from normlab.numerics.exact import round_to_odd, sticky, two_sum
from normlab.registry import choice, unknown

FORMATS = {
    "fp64": (11, 52, False),
    "fp32": (8, 23, False),
    "fp16": (5, 10, False),
    "bf16": (8, 7, False),
    "fp8_e4m3": (4, 3, True),
    "fp8_e5m2": (5, 2, False),
}
"""Formats with a name: (exponent bits, mantissa bits, whether it has no infinities)."""
FORMAT_OPTIONS = ("flush", "saturate", "truncate", "stochasticSEED")
Place = Array | np.ndarray | int
_FREE = re.compile(r"e([1-9])m(\d{1,2})")
_SEEDED = re.compile(r"stochastic(\d+|\(\d+\))")  # stochastic7; stochastic(7) in old records


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format no wider than float32; rounds to nearest, ties to even.

    And `fp64`, of a sum only: an accumulator that is wider than what enters it.

    `fp8_e4m3` is the format of the OCP 8-bit specification (arXiv:2209.05433): no infinities, its
    largest value is 448 and an overflow gives NaN. Every `eXmY` is IEEE-like: the top exponent is
    kept for infinities and NaN.
    """

    name: str
    exponent: int  # bits
    mantissa: int  # explicit bits
    finite: bool = False  # no infinities: the top exponent holds numbers, its last code is NaN
    subnormals: str = "ieee"  # or "flush": a result below the smallest normal is zero
    overflow: str = "inf"  # or "saturate": the largest finite value
    stochastic: int | None = None  # seed of stochastic rounding; None: to nearest even
    truncate: bool = False  # toward zero: what doesn't fit is cut off

    def __post_init__(self):
        """Refuse what float32 cannot hold, but for float64 itself."""
        if self.is_float64:
            return
        require(2 <= self.exponent <= 8, f"exponent bits = {self.exponent}: expected 2 to 8")
        # Of a sum that float32 cannot hold, 21 bits can be got in one rounding and 22 cannot.
        held = self.mantissa in (*range(1, 22), 23)
        require(held, f"mantissa bits = {self.mantissa}: expected 1 to 21, or 23")
        choice("subnormal handling", self.subnormals, ("ieee", "flush"))
        choice("overflow handling", self.overflow, ("inf", "saturate"))
        named = ["truncate"] * self.truncate + ["stochastic"] * (self.stochastic is not None)
        require(len(named) < 2, f"{self.name}: expected truncate or stochastic, not both")
        require(
            not named or self.mantissa != 23,
            f"{self.name} with option {' '.join(named)}: expected fewer mantissa bits than "
            "float32's 23, of which nothing is cut off",
        )

    @classmethod
    def parse(cls, text: str) -> "FloatFormat":
        """The format written `NAME{.OPTION}`: `fp16`, `e4m3.flush`, `bf16.stochastic7`."""
        name, *options = text.split(".")
        return functools.reduce(
            lambda made, option: made.with_option(option), options, _named(name)
        )

    def with_option(self, option: str) -> "FloatFormat":
        """The same format with `flush`, `saturate` or `stochasticSEED` added."""
        require(not self.is_float64, f"fp64.{option}: expected fp64, which takes no options")
        if seeded := _SEEDED.fullmatch(option):
            return dataclasses.replace(self, stochastic=int(seeded[1].strip("()")))
        if option == "flush":
            return dataclasses.replace(self, subnormals="flush")
        if option == "saturate":
            return dataclasses.replace(self, overflow="saturate")
        if option == "truncate":
            return dataclasses.replace(self, truncate=True)
        raise unknown("option of a float format", option, FORMAT_OPTIONS)

    def __str__(self) -> str:
        """The string that `parse` reads."""
        options = ["flush"] * (self.subnormals == "flush") + ["saturate"] * (
            self.overflow == "saturate"
        )
        options += ["truncate"] * self.truncate
        if self.stochastic is not None:
            options.append(f"stochastic{self.stochastic}")
        return ".".join([self.name, *options])

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value."""
        return 2 - 2 ** (self.exponent - 1)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with full precision (fp16: 2^-14)."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The spacing of the values below `smallest_normal` (fp16: 2^-24)."""
        return 2.0 ** (self.min_exponent - self.mantissa)

    @property
    def max(self) -> float:
        """The largest finite value (fp16: 65504)."""
        top = 2 ** (self.exponent - 1) - (0 if self.finite else 1)
        fraction = 2.0 - 2.0**-self.mantissa * (2 if self.finite else 1)
        return fraction * 2.0**top

    @property
    def held_in_float32(self) -> bool:
        """Whether two values may be added in float32 first: a second rounding does no harm.

        Twice the precision and two bits are enough for that: 11 bits in float32's 24.
        """
        return (self.mantissa <= 10 and not self.truncate) or self.stochastic is not None

    @property
    def is_float64(self) -> bool:
        """True of an accumulator in float64, whose sums are rounded to float32 once."""
        return (self.exponent, self.mantissa) == FORMATS["fp64"][:2]

    @property
    def is_float32(self) -> bool:
        """True where rounding to it changes nothing."""
        return self == _named("fp32")

    @property
    def is_half(self) -> bool:
        """True of fp16 without options, which processors convert to."""
        return self == _named("fp16")


def _named(name: str) -> FloatFormat:
    if name in FORMATS:
        exponent, mantissa, finite = FORMATS[name]
        return FloatFormat(name, exponent, mantissa, finite)
    if free := _FREE.fullmatch(name):
        return FloatFormat(name, int(free[1]), int(free[2]))
    raise unknown("float format", name, [*FORMATS, "eXmY (X exponent bits, Y mantissa bits)"])


def stage_format(given: "str | FloatFormat | None") -> FloatFormat:
    """A format that float32 holds; None is float32 itself.

    Raises:
        ValueError: fp64, which is of a sum only.
    """
    to = as_format(given or "fp32")
    require(not to.is_float64, "fp64: expected a format that float32 holds; fp64 is of `sum` only")
    return to


def as_format(given: "str | FloatFormat") -> FloatFormat:
    """A format from its string; a format is returned as it is."""
    return given if isinstance(given, FloatFormat) else FloatFormat.parse(given)


def round_to(x: Float[Array, "*shape"], to: str | FloatFormat) -> Float[Array, "*shape"]:
    """Round each element of x to a float format; the result is float32.

    Signs of zeros are kept, a NaN stays a NaN. Its derivative is that of the identity
    (straight-through), so that a model with rounded norms can be trained. Stochastic rounding is a
    function of the seed, of the element's value and of its place on the last axis. A row gives the
    same result alone and in any batch.

    Args:
        x: any float array; taken to float32 first.
        to: a format or its string, `fp16`, `fp8_e4m3.saturate`, `e5m7.flush.stochastic0`.
    """
    return _whole(jnp.asarray(x, jnp.float32), as_format(to))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round_to(x: Array, to: FloatFormat) -> Array:
    return rounded(x, to, np.arange(x.shape[-1], dtype=np.uint32) if x.ndim else 0)


@_round_to.defjvp
def _straight_through(to, primals, tangents):
    return _round_to(primals[0], to), tangents[0]


_whole = jax.jit(_round_to, static_argnums=1, inline=True)
"""Outside of any other program one program of its own, not one for each of its operations."""


def rounded(x: Array, to: FloatFormat, place: Place = 0) -> Array:
    """`round_to` for float32 x, without its derivative.

    Args:
        x: float32.
        to: the format.
        place: tells apart the roundings of one computation, for stochastic rounding; broadcasts
            against x. What of it is known before the computation is best given in NumPy.
    """
    if to.is_float32 or to.is_float64:
        return x
    if to.is_half:
        return _half(x)
    noise = _noise(x, to, place)
    r = _normal(x, to, noise)
    if to.subnormals == "flush":
        r = jnp.where(jnp.abs(r) < to.smallest_normal, jnp.copysign(0.0, r), r)
    elif to.exponent < 8:
        r = jnp.where(jnp.abs(x) < to.smallest_normal, _subnormal(x, to, noise), r)
    return _bounded(r, to)


def rounded_sum(a: Array, b: Array, to: FloatFormat, place: Place = 0) -> Array:
    """Round(a + b) for a and b that are values of the format already: what one adder does."""
    if to.mantissa >= 23:
        return rounded(a + b, to, place)
    if to.is_half:
        return _half(a + b)
    total = a + b if to.held_in_float32 else sticky(*two_sum(a, b))
    r = _normal(total, to, _noise(total, to, place))
    tiny = jnp.abs(total) < to.smallest_normal
    if to.subnormals == "flush":
        r = jnp.where(tiny & (jnp.abs(r) < to.smallest_normal), jnp.copysign(0.0, total), r)
    elif to.exponent < 8:  # a sum of two multiples of the smallest subnormal is one: it is exact
        r = jnp.where(tiny, total, r)
    return _bounded(r, to)


def rounded_pair(total: Array, rest: Array, to: FloatFormat, place: Place = 0) -> Array:
    """Round(total + rest), in one rounding, for a sum that float32 need not hold."""
    if to.mantissa == 23:  # of an infinite total the rest is NaN
        return rounded(jnp.where(jnp.isfinite(total), total + rest, total), to, place)
    return rounded(round_to_odd(total, rest), to, place)


def _half(x: Array) -> Array:
    """X converted to a half and back: two instructions on most CPUs.

    XLA would drop such a pair, and on some CPUs contract a product with the sum that follows. It
    cannot see through the choice between them, which changes no value.
    """
    half = lax.bitcast_convert_type(x.astype(jnp.float16), jnp.uint16)
    half = jnp.where(jnp.isnan(x), jnp.uint16(0x7E00), half)
    return lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32)


def _bounded(r: Array, to: FloatFormat) -> Array:
    if to.overflow == "saturate":
        return jnp.clip(r, -to.max, to.max)
    if to.exponent == 8 and not to.finite:  # float32 has overflowed by itself
        return r
    if to.truncate:
        return jnp.where(jnp.isfinite(r), jnp.clip(r, -to.max, to.max), r)
    beyond = jnp.nan if to.finite else jnp.copysign(jnp.inf, r)
    return jnp.where(jnp.abs(r) > to.max, beyond, r)


def _normal(x: Array, to: FloatFormat, noise: Array | None) -> Array:
    """X rounded to the mantissa, whatever its exponent; stochastically where there is noise.

    That is up with the probability of the share that rounding down would cut off.
    """
    if noise is None and not to.truncate:
        return x if to.mantissa == 23 else lax.reduce_precision(x, 8, to.mantissa)
    lost, bits = 23 - to.mantissa, lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits if noise is None else bits + (noise >> (32 - lost))
    r = lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFFFFF << lost & 0xFFFFFFFF), jnp.float32)
    return jnp.where(jnp.isnan(x), x, r)


def _subnormal(x: Array, to: FloatFormat, noise: Array | None) -> Array:
    """X rounded to a multiple of the smallest subnormal. XLA would undo (|x| + c) - c."""
    steps = jnp.abs(x) / to.smallest_subnormal  # exactly
    if to.truncate:
        whole = jnp.floor(steps)
    elif noise is None:
        whole = lax.round(steps, lax.RoundingMethod.TO_NEAREST_EVEN)
    else:
        share = (noise >> 8).astype(jnp.float32) * 2.0**-24
        whole = jnp.floor(steps) + (share < steps - jnp.floor(steps))
    return jnp.copysign(whole * to.smallest_subnormal, x)


def _noise(x: Array, to: FloatFormat, place: Place) -> Array | None:
    """32 bits made of value, place and seed, the upper ones to be used.

    MurmurHash3's finalizer twice, less its last step, which mends the lower bits. The places' half
    is made in NumPy where they are, and is a constant then.
    """
    if to.stochastic is None:
        return None
    place = place if isinstance(place, np.ndarray) else jnp.asarray(place).astype(jnp.uint32)
    seed = np.uint32(to.stochastic * 0x9E3779B9 & 0xFFFFFFFF)
    return _mixed(lax.bitcast_convert_type(x, jnp.uint32) ^ _mixed(place + seed))


def _mixed(h: Any) -> Any:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    return (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
