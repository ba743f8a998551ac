"""A norm unit in NumPy, stage by stage, from its description alone; independent of JAX."""

import math

import ml_dtypes  # noqa: F401  (registers the dtypes that NumPy casts to)
import numpy as np

from normlab.numerics import FloatFormat, Precision
from tests.support.numerics_reference import rounded, squares, summed

FP32 = FloatFormat.parse("fp32")


def unit(x, path, weight=None, bias=None, eps=1e-5, scale=1.0, center=False, joined=False):
    """The rows [n, d] that leave the unit, in float32; of what isn't named as float32 has it.

    Where γ is `joined` to 1/rms, the row meets both at once.
    """
    precision, f = Precision.parse(path.sum), np.float32
    to, mirrored = precision.format, path.mirrored and not center

    def total(terms):
        if to.is_float64:
            return summed(terms, precision)[:, None]
        if precision.plain or path.tree:
            return plain_sum(terms, precision, path.tree)
        return f(summed(terms, precision))[:, None]

    def share(value):
        d = x.shape[-1] * (1 + mirrored)
        if path.mean.wide:
            return f(value / d if path.mean.kind == "divide" else value * (1 / d))
        value = f(value)
        if path.mean.kind == "divide":
            return held(value / f(d), path.mean.format)
        return held(value * held(f(1 / d), path.mean.format), path.mean.format)

    def of_squares(rows):
        if mirrored:
            rows = np.concatenate([rows, -rows], -1)
        q = held(rows * rows, path.square) if path.square else f(rows)
        return total(f(rounded(q, to)) if path.square else f(squares(rows, to)))

    with np.errstate(all="ignore"):
        z = held(f(x), path.input) * (f(1) / f(scale))
        whole = z
        if path.variance:
            middle, variance = moments(z, path.variance)
            z = z - middle
        elif center:
            z = z - share(total(f(rounded(z, to))))
        beside = held(f(eps) * (f(1) / f(scale)) ** 2, path.eps)
        variance = variance if path.variance else share(of_squares(z))
        v = held(variance + beside, path.eps)
        if joined:
            divides = path.root.kind == "divide"
            inverse = held(np.sqrt(v), path.root.format) if divides else root(v, path.root)
            return left(z * f(weight / inverse if divides else weight * inverse), path.output)
        if path.fused:
            inverse = root(v, path.root)
            y = held(fma(whole, inverse, -inverse * middle), path.product)
        elif path.root.kind == "divide":
            y = held(z / held(np.sqrt(v), path.root.format), path.product)
        else:
            y = held(z * root(v, path.root), path.product)
        if path.cast_first:
            y = left(y, path.output)
        weight, bias = (held(part, path.stored) for part in (weight, bias))
        if path.fused:
            return left(fma(y, weight, bias), path.output)
        if path.one_plus:
            weight = held(f(1) + held(weight, path.one_plus), path.one_plus)
        if weight is not None:
            y = held(y * held(weight, path.weight), path.weight)
        if bias is not None:
            y = held(y + held(bias, path.bias), path.bias)
        return left(y, path.output)


def fma(a, b, c):
    """One rounding to float32's 24 bits, after one to 64."""
    with np.errstate(all="ignore"):
        return np.float32(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def moments(x, text):
    """The loops of `RowwiseMomentsImpl` in PyTorch's moments_utils.h, row by row."""
    k, turns = int(text.removeprefix("welford").split("x")[0]), 1 + text.endswith("x2")
    found = [_moments(row, k, turns) for row in x]
    return tuple(np.float32([part[i] for part in found])[:, None] for i in (0, 1))


def _moments(x, k, turns):
    f = np.float32

    def joined(into, part):
        (n, mean0, squares0), (m, mean, squares) = into, part
        if not m + n:
            return into
        share, away = f(m) / f(m + n), mean - mean0
        if np.ndim(mean):
            step = share * away
            return m + n, mean0 + step, fma(away * f(n), step, squares0 + squares)
        return (
            m + n,
            fma(share, away, mean0),
            squares0 + fma(away * away * share, f(n), squares),
        )

    vectors, zero = len(x) // (k * turns), np.zeros(k, f)
    pieces = x[: vectors * k * turns].reshape(vectors, turns, k)
    chunks = -(-vectors // 16)
    depth = max(1, (chunks - 1).bit_length() if chunks else 1)
    levels = [(0, zero, zero) for _ in range(depth)]
    for i in range(chunks):
        chunk = pieces[16 * i : 16 * i + 16]
        mean = squares = np.zeros((turns, k), f)
        for j, piece in enumerate(chunk):
            away = piece - mean
            mean = fma(away, f(1) / f(j + 1), mean)
            squares = fma(away, piece - mean, squares)
        for t in range(turns):
            levels[0] = joined(levels[0], (len(chunk), mean[t], squares[t]))
        mask, j = i + 1, 1
        while j < depth and not mask & 1:
            levels[j], levels[j - 1] = joined(levels[j], levels[j - 1]), (0, zero, zero)
            mask, j = mask >> 1, j + 1
    for level in levels[1:]:
        levels[0] = joined(levels[0], level)
    total = (0, f(0), f(0))
    for value in x[vectors * k * turns :]:
        count, away = total[0] + 1, value - total[1]
        mean = total[1] + away / f(count)
        total = count, mean, fma(away, value - mean, total[2])
    count, means, squares = levels[0]
    for lane in range(k if vectors else 0):
        total = joined(total, (count, means[lane], squares[lane]))
    return total[1], total[2] / f(len(x))


def held(value, name):
    """In a format, by name; None: float32."""
    with np.errstate(all="ignore"):
        if value is None:
            return None
        value = np.float32(value)
        return value if name is None else np.float32(rounded(value, FloatFormat.parse(name)))


def plain_sum(terms, precision, tree):
    """A sum in float32, whose order doesn't matter where the test's rows add up exactly; or lanes.

    The sums of `lanesK` in their format, their tree in another one, which may be float64.
    """
    if tree is None:
        return np.float32(np.float64(terms).sum(-1, keepdims=True))
    k = precision.summation.width
    padded = np.pad(terms, [(0, 0), (0, -terms.shape[-1] % k)])
    sequential = Precision.parse(f"{precision.format}:sequential")
    lanes = [summed(padded[:, i::k], sequential) for i in range(k)]
    return np.float32(summed(np.stack(lanes, -1), Precision.parse(f"{tree}:pairwise")))[:, None]


def root(v, given):
    """1/√v of each kind, one number at a time."""
    with np.errstate(all="ignore"):
        return np.array([[_root(np.float32(value), given)] for value in v[:, 0]], np.float32)


def _root(v, given):
    f, to = np.float32, given.format
    if not (np.isfinite(v) and v > 0):
        return f(0) if v == np.inf else f(np.inf) if v == 0 else f(np.nan)
    if given.kind in ("rsqrt", "sqrt"):
        return (
            held(f(1) / held(np.sqrt(v), to), to)
            if given.kind == "sqrt"
            else held(f(1 / math.sqrt(float(v))), to)
        )
    if given.kind == "magic":
        a = (np.uint32(0x5F3759DF) - (v.view(np.uint32) >> np.uint32(1))).view(f)
    else:
        power = math.floor(math.log2(float(v)) / 2)
        m, half = float(v) / 4.0**power, given.entries // 2
        octave = 1 if m < 2 else 2
        cell = math.floor((m / octave - 1) * half)
        low, high = (octave * (1 + (cell + i) / half) for i in (0, 1))
        if given.interpolate:
            ends = [held(f(end**-0.5), to) for end in (low, high)]
            where = f((m / octave - 1) * half - cell)
            a = held(ends[0] + (ends[1] - ends[0]) * where, to)
        else:
            a = held(f(((low + high) / 2) ** -0.5), to)
        a = f(np.ldexp(a, -power))
    a = held(a, to)
    for _ in range(given.newton):
        spent = held(held(f(0.5) * v, to) * held(a * a, to), to)
        a = held(a * held(f(1.5) - spent, to), to)
    return a


def left(y, output):
    """In the output's format, or in 8 bits with a scale for each part."""
    code, _, part = (output or "").partition(".")
    if not part.startswith(("tensor", "row", "block")):
        return held(y, output)
    f, most = np.float32, {"int8": 127, "fp8_e4m3": 448, "fp8_e5m2": 57344}[code]
    size = int(part[5:]) if part.startswith("block") else y.shape[-1]
    parts = y.reshape(len(y), -1, size)
    top = np.abs(parts).max(None if part == "tensor" else -1, keepdims=True)
    scale = top * (f(1) / f(most))
    scale = np.where(scale == 0, f(1), scale)
    codes = parts / scale
    codes = (
        np.clip(np.rint(codes), -most, most) if code == "int8" else held(codes, f"{code}.saturate")
    )
    return f(f(codes) * scale).reshape(y.shape)
