"""What the numerics must give, in NumPy: independent of JAX, and of how normlab computes it.

Run as a program it checks every value and every order once, for the tests that need another
process with other XLA flags.
"""

import itertools

import jax
import ml_dtypes
import numpy as np

from normlab.numerics import FloatFormat, Precision, round_to, sum_of_squares

DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
}
ORDERS = (
    "sequential",
    "pairwise",
    "lanes3",
    "lanes64",
    "blocks4",
    "blocks100",
    "cascade8",
    "exact_then_round",
    "tree_1_0_2_a_a",
)


def same(got, want) -> np.ndarray:
    """Where two float32 arrays agree bit for bit; a NaN agrees with any NaN."""
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    equal = got.view(np.uint32) == want.view(np.uint32)
    return equal | (np.isnan(got) & np.isnan(want))


def all_values(name: str) -> np.ndarray:
    """Every value of a format of 8 or 16 bits, infinities and NaNs included, as float32."""
    dtype = np.dtype(DTYPES[name])
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=f"uint{8 * dtype.itemsize}")
    return codes.view(dtype).astype(np.float32)


def hard_values(name: str) -> np.ndarray:
    """Every value, every midpoint between neighbours, the float32s beside both, and the edges."""
    values = all_values(name)
    finite = np.unique(np.abs(values[np.isfinite(values)]).astype(np.float64))
    beyond = 2 * finite[-1] - finite[-2]  # where the next value would be
    with np.errstate(over="ignore"):
        middles = ((finite + np.append(finite[1:], beyond)) / 2).astype(np.float32)
    special = np.array([0, np.inf, np.nan, beyond, 2 * beyond, 3.4e38, 2.0**-126, 2.0**-140])
    with np.errstate(over="ignore"):
        around = np.concatenate([np.float32(finite), middles, np.float32(special)])
        near = [around, np.nextafter(around, np.inf), np.nextafter(around, -np.inf)]
    positive = np.float32(np.concatenate(near))
    return np.concatenate([values, positive, -positive])


def cast(x, name: str) -> np.ndarray:
    """X rounded to the format by NumPy or ml_dtypes, as float32."""
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float32).astype(DTYPES[name]).astype(np.float32)


def rounded(x, to: FloatFormat) -> np.ndarray:
    """X (float64, exact) rounded once to any format, to nearest even, in float64."""
    if to.is_float64:
        return np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        x = np.asarray(x, np.float64)
        exponent = np.frexp(x)[1] - 1
        if to.subnormals == "ieee":
            exponent = np.maximum(exponent, to.min_exponent)
        step = np.ldexp(1.0, exponent - to.mantissa)
        whole = np.trunc if to.truncate else np.rint
        r = np.where(np.isfinite(x), whole(x / step) * step, x)
        if to.subnormals == "flush":
            r = np.where(np.abs(r) < to.smallest_normal, np.copysign(0.0, r), r)
        if to.overflow == "saturate":
            return np.clip(r, -to.max, to.max)
        if to.truncate:
            return np.where(np.isfinite(r), np.clip(r, -to.max, to.max), r)
        beyond = np.nan if to.finite else np.copysign(np.inf, r)
        return np.where(np.abs(r) > to.max, beyond, r)


def summed(terms, precision: Precision) -> np.ndarray:
    """Σ of values of the format over the last axis, by loops of rounded float64 adds."""
    to, order = precision.format, precision.summation
    if to.exponent == 8 and to.subnormals == "ieee" and not to.is_float32:
        to = to.with_option("flush")
    terms, k = np.asarray(terms, np.float64), order.width or 1

    def left_to_right(parts):
        with np.errstate(all="ignore"):
            total = np.zeros(parts.shape[1:])
            for part in parts:
                total = rounded(total + part, to)
        return total

    def tree(parts):  # zero-pad to a power of two, add adjacent pairs, repeat
        size = 1 << (parts.shape[-1] - 1).bit_length()
        parts = np.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, size - parts.shape[-1])])
        with np.errstate(all="ignore"):
            while parts.shape[-1] > 1:
                parts = rounded(parts[..., ::2] + parts[..., 1::2], to)
        return parts[..., 0]

    if order.name == "sequential":
        return left_to_right(np.moveaxis(terms, -1, 0))
    if order.name == "pairwise":
        return tree(terms)
    if order.name == "exact_then_round":
        return rounded(terms.sum(-1), to)
    if order.name == "cascade":
        return cascaded(np.moveaxis(terms, -1, 0), k, to)
    padded = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, -terms.shape[-1] % k)])
    pieces = np.moveaxis(padded.reshape(*terms.shape[:-1], -1, k), -2, 0)
    if order.name == "tree":
        return explicit(left_to_right(pieces), order.postfix, to)
    return tree(left_to_right(pieces)) if order.name == "lanes" else left_to_right(pieces.sum(-1))


def explicit(lanes, postfix, to):
    """A tree in postfix over the lanes."""
    stack = []
    for part in postfix.split("_"):
        if part == "a":
            right, left = stack.pop(), stack.pop()
            with np.errstate(all="ignore"):
                stack.append(rounded(left + right, to))
        else:
            stack.append(lanes[..., int(part)])
    return stack[0]


def cascaded(terms, k, to):
    """The loops of `cascade_sum` in PyTorch's SumKernel.cpp over the first axis, vectors of k."""

    def add(a, b):
        with np.errstate(all="ignore"):
            return rounded(a + b, to)

    def row_sum(pieces):  # [n, …]: four accumulators with levels of 16
        levels = np.zeros((4, 4, *pieces.shape[1:]))
        rows, i = len(pieces) // 4, 0
        while i + 16 <= rows:
            for _ in range(16):
                levels[0] = add(levels[0], pieces[4 * i : 4 * i + 4])
                i += 1
            for j in range(1, 4):
                levels[j], levels[j - 1] = add(levels[j], levels[j - 1]), 0
                if i & (15 << (4 * j)):
                    break
        for r in range(i, rows):
            levels[0] = add(levels[0], pieces[4 * r : 4 * r + 4])
        four = levels[0]
        for j in range(1, 4):
            four = add(four, levels[j])
        for piece in pieces[4 * rows :]:
            four[0] = add(four[0], piece)
        return add(add(add(four[0], four[1]), four[2]), four[3])

    count = len(terms) // k
    lanes = row_sum(terms[: count * k].reshape(count, k, *terms.shape[1:]))
    total = row_sum(terms[count * k :])
    for lane in lanes:
        total = add(total, lane)
    return total


def squares(x, to: FloatFormat) -> np.ndarray:
    """Round(x²), x² itself in float32; what float32 holds below 2^-126 is zero there."""
    with np.errstate(all="ignore"):
        product = np.float32(x) * np.float32(x)
    product = np.where(product < 2.0**-126, np.float32(0), product)
    flushed = to.exponent == 8 and to.subnormals == "ieee" and not to.is_float32
    return rounded(product, to.with_option("flush") if flushed else to)


def extreme_rows(seed: int, d: int, octaves: float, rows: int = 16) -> np.ndarray:
    """Rows whose elements spread over `octaves` powers of two, about a scale of each row's own."""
    rng = np.random.default_rng(seed)
    spread = 2.0 ** rng.uniform(-octaves, octaves, (rows, d))
    scale = 2.0 ** rng.uniform(-6, 6, (rows, 1))
    return np.float32(rng.standard_normal((rows, d)) * spread * scale)


def check_everything() -> int:
    """Check each hard value of each format and each order once; the count of checked values."""
    count = 0
    for name in DTYPES:
        x = hard_values(name)
        for call in (round_to, jax.jit(round_to, static_argnums=1)):
            wrong = ~same(call(x, name), cast(x, name))
            assert not wrong.any(), (name, x[wrong][:5])
            count += x.size
    x = extreme_rows(0, 300, 2.0)
    orders = ("sequential", "pairwise", "lanes8", "blocks16", "exact_then_round")
    narrow = ("fp8_e5m2", "fp8_e4m3", "fp16.flush.saturate", "fp32")
    pairs = [
        *itertools.product(("fp16", "bf16", "e5m14"), orders),
        *itertools.product(narrow, ("sequential", "lanes8")),
    ]
    for name, order in pairs:
        precision = Precision.parse(f"{name}:{order}")
        want = summed(squares(x, precision.format), precision)
        got = jax.jit(sum_of_squares, static_argnums=1)(x, precision)
        assert same(got, want).all(), str(precision)
        count += want.size
    return count


if __name__ == "__main__":
    print(check_everything())
