"""Recomputes every stage of golden vectors from `unit.json`, in NumPy alone, and compares the bits.

    python reproduce.py            in the directory that `python -m evaluate golden` wrote

float32 results below 2^-126 are zeros of their sign. All other arithmetic is IEEE 754.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMED = {"fp64": (11, 52), "fp32": (8, 23), "fp16": (5, 10), "bf16": (8, 7)}
NAMED |= {"fp8_e4m3": (4, 3), "fp8_e5m2": (5, 2)}
TINY = 2.0**-126
Rows = Any
"""Arrays [rows, …], float32 but for sums in float64."""
Moments = tuple[int, Rows, Rows]
"""Terms, their mean, the sum of their squares about it."""


def bits_of(name: str) -> tuple[int, int]:
    """Exponent and mantissa bits of a format: `fp16`, `e5m7.flush`."""
    base = name.split(".")[0]
    if base in NAMED:
        return NAMED[base]
    exponent, mantissa = base.removeprefix("e").split("m")
    return int(exponent), int(mantissa)


def rounded(x: Rows, name: str | None) -> Rows:
    """Float64 values rounded once to a format, to nearest even (`.truncate`: to zero)."""
    name = name or "fp32"
    exponent, mantissa = bits_of(name)
    x = np.asarray(x, np.float64)
    if exponent == 11:
        return x
    finite, flush = name.startswith("fp8_e4m3"), ".flush" in name or exponent == 8
    least = 2 - 2 ** (exponent - 1)
    top = (2 - 2.0**-mantissa * (1 + finite)) * 2.0 ** (2 ** (exponent - 1) - 1 + finite)
    place = np.frexp(x)[1] - 1
    step = np.ldexp(1.0, (place if flush else np.maximum(place, least)) - mantissa)
    whole = np.trunc if ".truncate" in name else np.rint
    r = np.where(np.isfinite(x), whole(x / np.where(step == 0, 1, step)) * step, x)
    if flush:
        r = np.where(np.abs(r) < 2.0**least, np.copysign(0.0, r), r)
    if ".saturate" in name or ".truncate" in name:
        return np.where(np.isfinite(r) | (".saturate" in name), np.clip(r, -top, top), r)
    return np.where(np.abs(r) > top, np.nan if finite else np.copysign(np.inf, r), r)


def held(x: Rows, name: str | None = None) -> Rows:
    """A float32 step's result, flushed where it is tiny, as the unit holds it."""
    x = np.float32(x)
    x = np.where(np.abs(x) < np.float32(TINY), np.copysign(np.float32(0), x), x)
    return x if name is None else np.float32(rounded(x, name))


def encoded(x: Rows, name: str) -> Rows:
    """The bit patterns of a format's values, as unsigned integers."""
    exponent, mantissa = bits_of(name)
    bias = 2 ** (exponent - 1) - 1
    x = np.asarray(x, np.float64)
    power = np.frexp(np.abs(x))[1]
    power = np.where(x == 0, 1 - bias, np.maximum(power - 1, 1 - bias))
    significand = np.ldexp(np.where(np.isfinite(x), np.abs(x), 0), mantissa - power)
    code = significand.astype(np.uint64)
    normal = code >= np.uint64(1 << mantissa)
    field = np.where(normal, power + bias, 0).astype(np.uint64)
    code = (field << np.uint64(mantissa)) | (code & np.uint64((1 << mantissa) - 1))
    whole = ((1 << exponent) - 1) << mantissa
    nan = whole | ((1 << mantissa) - 1 if name.startswith("fp8_e4m3") else 1 << (mantissa - 1))
    code = np.where(np.isinf(x), np.uint64(whole), np.where(np.isnan(x), np.uint64(nan), code))
    sign = (np.signbit(x) & ~np.isnan(x)).astype(np.uint64)
    return code | (sign << np.uint64(exponent + mantissa))


def left_to_right(pieces: Rows, add: Callable[[Rows, Rows], Rows]) -> Rows:
    """The sums over the first axis."""
    total = np.zeros(pieces.shape[1:])
    for piece in pieces:
        total = add(total, piece)
    return total


def tree(parts: Rows, add: Callable[[Rows, Rows], Rows], postfix: str | None) -> Rows:
    """Every node of a tree over the last axis, its root last: level by level, or in postfix."""
    nodes = []
    if postfix is None:
        while parts.shape[-1] > 1:
            parts = np.pad(parts, [(0, 0), (0, parts.shape[-1] % 2)])
            parts = add(parts[:, ::2], parts[:, 1::2])
            nodes.append(parts)
        return np.concatenate(nodes, -1) if nodes else parts
    stack: list[Rows] = []
    for part in postfix.split("_"):
        if part == "a":
            right, left = stack.pop(), stack.pop()
            stack.append(add(left, right))
            nodes.append(stack[-1])
        else:
            stack.append(parts[:, int(part) : int(part) + 1])
    return np.concatenate(nodes, -1) if nodes else parts


def cascaded(terms: Rows, k: int, add: Callable[[Rows, Rows], Rows]) -> Rows:
    """Vectors of k in four accumulators, in levels of 16, then lane by lane."""

    def vectors(pieces: Rows) -> Rows:
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
    lanes = vectors(terms[: count * k].reshape(count, k, *terms.shape[1:]))
    total = vectors(terms[count * k :])
    for lane in lanes:
        total = add(total, lane)
    return total


def summed(terms: Rows, unit: dict[str, Any], found: dict[str, Rows] | None = None) -> Rows:
    """Σ over the last axis [rows, 1] by the order; lanes and tree are kept in `found`."""
    order, k, name = unit["order"], unit["width"], unit["sum_format"]
    wide = unit["tree"] or name

    def add(a: Rows, b: Rows) -> Rows:
        return rounded(a + b, name)

    terms = np.float64(rounded(terms, name))
    if unit["terms_over_d"]:
        terms = rounded(held(np.float32(terms) * np.float32(1 / terms.shape[-1])), name)
    if order == "sequential":
        return left_to_right(terms.T, add)[:, None]
    if order == "pairwise":
        return tree(terms, add, None)[:, -1:]
    if order == "exact_then_round":
        return rounded(terms.sum(-1, keepdims=True), name)
    if order == "cascade":
        return cascaded(terms.T, k, add)[:, None]
    padded = np.pad(terms, [(0, 0), (0, -terms.shape[-1] % k)])
    pieces = np.moveaxis(padded.reshape(len(terms), -1, k), 1, 0)
    if order == "blocks":
        return left_to_right(pieces.sum(-1, keepdims=True), add)
    lanes = left_to_right(pieces, add)
    nodes = tree(lanes, lambda a, b: rounded(a + b, wide), unit["postfix"])
    if found is not None:
        found |= {"lanes": lanes, "tree": nodes}
    return nodes[:, -1:]


def mean_of(total: Rows, d: int, mean: dict[str, Any]) -> Rows:
    """Σ · round(1/d), Σ / d, or Σ shifted, in a format."""
    kind, name = mean["kind"], mean["format"]
    if name == "fp64":
        return held(total / d if kind == "divide" else total * (1 / d))
    total = np.float32(total)
    if kind == "divide":
        return held(total / np.float32(d), name)
    return held(total * held(np.float32(1 / d), name), name)


def inverse(v: Rows, root: dict[str, Any]) -> Rows:
    """1/√v of v [rows, 1]; 0 where v is infinite."""
    name, one = root["format"], np.float32(1)
    if root["kind"] == "sqrt":
        return held(one / held(np.sqrt(v), name), name)
    good = np.isfinite(v) & (v >= np.float32(TINY))
    safe = np.where(good, v, one)
    if root["kind"] == "magic":
        a = (np.uint32(0x5F3759DF) - (safe.view(np.uint32) >> np.uint32(1))).view(np.float32)
    else:
        a = _table(safe, root)
    a = held(a, name)
    for _ in range(root["newton"]):
        spent = held(held(np.float32(0.5) * safe, name) * held(a * a, name), name)
        a = held(a * held(np.float32(1.5) - spent, name), name)
    return np.where(good, a, one / np.sqrt(v))


def _table(v: Rows, root: dict[str, Any]) -> Rows:
    power = np.floor(np.log2(np.float64(v)) / 2)
    m, half = np.float64(v) / 4.0**power, root["entries"] // 2
    octave = np.where(m < 2, 1, 2)
    place = (m / octave - 1) * half
    cell = np.floor(place)
    ends = [octave * (1 + (cell + i) / half) for i in (0, 0.5, 1)]
    low, middle, high = (held(np.float32(end**-0.5), root["format"]) for end in ends)
    line = low + (high - low) * np.float32(place - cell)
    return np.float32(np.ldexp(line if root["interpolate"] else middle, -power.astype(int)))


def leaves(y: Rows, output: str | None) -> Rows:
    """In the output's format, or in 8 bits with a scale for each part."""
    if output is None or not output.startswith(("int8.", "fp8_e4m3.", "fp8_e5m2.")):
        return held(y, output)
    code, part = output.split(".")
    if part in ("flush", "saturate", "truncate"):
        return held(y, output)
    f, most = np.float32, {"int8": 127, "fp8_e4m3": 448, "fp8_e5m2": 57344}[code]
    parts = y.reshape(len(y), -1, int(part[5:]) if part.startswith("block") else y.shape[-1])
    top = np.abs(parts).max(None if part == "tensor" else -1, keepdims=True)
    scale = held(top * (f(1) / f(most)))
    scale = np.where(scale == 0, f(1), scale)
    codes = held(parts / scale)
    codes = np.clip(np.rint(codes), -most, most) if code == "int8" else codes
    codes = codes if code == "int8" else held(codes, f"{code}.saturate")
    return held(f(codes) * scale).reshape(y.shape)


def fma(a: Rows, b: Rows, c: Rows) -> Rows:
    """a·b + c of float32s with one rounding: float64 keeps what its sum lost in the last bit."""
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    inward = ((lost > 0) != (total > 0)).astype(np.int64)
    odd = ((total.view(np.int64) - inward) | 1).view(np.float64)
    return held(np.where(np.isfinite(total) & (lost != 0), odd, total))


def joined(part: Moments, into: Moments) -> Moments:
    """Two groups' moments as one's, on vectors."""
    (m, mean, squares), (n, mean0, squares0) = part, into
    if not m + n:
        return into
    away = held(mean - mean0)
    step = held(np.float32(m) / np.float32(m + n) * away)
    total = fma(held(away * np.float32(n)), step, held(squares0 + squares))
    return m + n, held(mean0 + step), total


def joined_lane(part: Moments, into: Moments) -> Moments:
    """The same of one lane, as a compiler contracts the scalar steps."""
    (m, mean, squares), (n, mean0, squares0) = part, into
    share, away = np.float32(m) / np.float32(m + n), held(mean - mean0)
    square = held(held(away * away) * share)
    return m + n, fma(away, share, mean0), held(squares0 + fma(square, np.float32(n), squares))


def updated(pieces: Rows) -> Moments:
    """Welford's updates over the first axis, with a rounded reciprocal of the count."""
    mean = squares = np.zeros_like(pieces[0])
    for j, x in enumerate(pieces):
        away = held(x - mean)
        mean = fma(away, np.float32(1) / np.float32(j + 1), mean)
        squares = fma(away, held(x - mean), squares)
    return len(pieces), mean, squares


def welford(z: Rows, variance: str) -> tuple[Rows, Rows]:
    """Mean and variance of each row: K lanes, T accumulators by turns, in chunks of 16 vectors."""
    k, turns = (int(n) for n in (variance.removeprefix("welford") + "x1").split("x")[:2])
    vectors = z.shape[-1] // (k * turns)
    whole = z[:, : vectors * k * turns].reshape(len(z), vectors, turns, k)
    zero = np.zeros((len(z), k), np.float32)
    starts = range(0, vectors, 16)
    levels = [(0, zero, zero)] * max(1, (len(starts) - 1).bit_length())
    for i, start in enumerate(starts):
        for turn in range(turns):
            part = updated(np.moveaxis(whole[:, start : start + 16, turn], 1, 0))
            levels[0] = joined(part, levels[0])
        mask, j = i + 1, 1
        while j < len(levels) and not mask & 1:
            levels[j], levels[j - 1] = joined(levels[j - 1], levels[j]), (0, zero, zero)
            mask, j = mask >> 1, j + 1
    for level in levels[1:]:
        levels[0] = joined(level, levels[0])
    total = _one_by_one(z[:, vectors * k * turns :])
    count, means, squares = levels[0]
    for lane in range(k if vectors else 0):
        total = joined_lane((count, means[:, lane], squares[:, lane]), total)
    return total[1][:, None], held(total[2] / np.float32(z.shape[-1]))[:, None]


def _one_by_one(rest: Rows) -> Moments:
    """What fills no vector."""
    mean = squares = np.zeros(len(rest), np.float32)
    for i, x in enumerate(rest.T):
        away = held(x - mean)
        mean = held(mean + held(away / np.float32(i + 1)))
        squares = fma(away, held(x - mean), squares)
    return rest.shape[-1], mean, squares


def statistic(x: Rows, unit: dict[str, Any], found: dict[str, Rows]) -> tuple[Rows, Rows, Rows]:
    """The row less its mean where the unit takes it off, that mean, and the mean square."""
    own = unit["sum_format"] if unit["row_in_sum_format"] else None
    z = found["input"] = held(held(x, unit["input"]), own)
    middle, d = np.float32(0), 1 if unit["terms_over_d"] else z.shape[-1]
    if unit["variance"] is not None:
        middle, found["mean"] = welford(z, unit["variance"])
        return held(z - middle), middle, found["mean"]
    part = z
    if unit["center"]:
        middle = mean_of(summed(z, unit), d, unit["mean"])
        z = held(z - middle, own)
        part = part if unit["onepass"] else z
    elif unit["mirrored"]:
        part, d = np.concatenate([z, -z], -1), 2 * d if d > 1 else 1
    square = held(part * part, unit["square"])
    found["square"] = np.float32(rounded(square, unit["sum_format"]))
    total = summed(found["square"], unit, found)
    found["sum"] = np.float32(total)
    mean = found["mean"] = mean_of(total, d, unit["mean"])
    if unit["center"] and unit["onepass"]:
        away = held(np.float32(d) * held(middle * middle))
        mean = mean_of(held(np.float32(total) - away), d, unit["mean"])
    return z, middle, mean


def stages(x: Rows, weight: Rows, bias: Rows, unit: dict[str, Any]) -> dict[str, Rows]:
    """Every stage's values by name, in the order in which the unit makes them."""
    found: dict[str, Rows] = {}
    z, middle, mean = statistic(x, unit, found)
    v = found["eps"] = held(mean + held(np.float32(unit["epsilon"]), unit["eps"]), unit["eps"])
    if unit["root"]["kind"] == "divide":
        root = found["root"] = held(np.sqrt(v), unit["root"]["format"])
    else:
        root = found["root"] = inverse(v, unit["root"])
    if unit["fused"]:
        y = fma(found["input"], root, held(-root * middle))
    else:
        y = z / root if unit["root"]["kind"] == "divide" else z * root
    y = found["product"] = held(y, unit["product"])
    return found | affine(y, weight, bias, unit)


def affine(y: Rows, weight: Rows, bias: Rows, unit: dict[str, Any]) -> dict[str, Rows]:
    """γ·y + β, each where there is one, and what leaves."""
    found: dict[str, Rows] = {}
    if unit["fused"] and weight is not None and bias is not None:
        y = fma(y, held(weight, unit["stored"]), held(bias, unit["stored"]))
        return {"output": leaves(y, unit["output"])}
    y = leaves(y, unit["output"]) if unit["cast_first"] and weight is not None else y
    if weight is not None:
        gamma = held(weight, unit["stored"])
        if unit["stored_as_w"]:
            gamma = held(1 + held(gamma, unit["one_plus"]), unit["one_plus"])
        y = found["weight"] = held(y * held(gamma, unit["weight"]), unit["weight"])
    if bias is not None:
        beta = held(held(bias, unit["stored"]), unit["bias"])
        y = found["bias"] = held(y + beta, unit["bias"])
    found["output"] = leaves(y, unit["output"])
    return found


def main(folder: Path) -> int:
    """How many stages differ from the vectors, in the archive or in the hex files."""
    told = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
    with np.load(folder / "vectors.npz") as file:
        given = dict(file)
    with np.errstate(all="ignore"):
        stored = given.get("weight_stored"), given.get("bias_stored")
        made = stages(given["x"], *stored, told["unit"])
        wrong = 0
        for name, about in told["stages"].items():
            patterns = encoded(made[name], about["format"]).ravel()
            lines = (folder / f"{name}.hex").read_text().split()
            same = encoded(given[name], about["format"]).ravel() == patterns
            same &= np.array([int(line, 16) for line in lines], np.uint64) == patterns
            print(f"{name}: {same.sum()} of {same.size} equal")
            wrong += not same.all()
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(Path(__file__).parent) else 0)
