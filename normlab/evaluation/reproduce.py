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

    terms = np.float64(terms)
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


def stages(x: Rows, weight: Rows, bias: Rows, unit: dict[str, Any]) -> dict[str, Rows]:
    """Every stage's values by name, in the order in which the unit makes them."""
    found: dict[str, Rows] = {}
    z = found["input"] = held(x, unit["input"])
    if unit["center"]:
        added = summed(rounded(z, unit["sum_format"]), unit)
        z = held(z - mean_of(added, z.shape[-1], unit["mean"]))
    part = np.concatenate([z, -z], -1) if unit["mirrored"] and not unit["center"] else z
    square = held(part * part, unit["square"])
    found["square"] = np.float32(rounded(square, unit["sum_format"]))
    total = summed(found["square"], unit, found)
    found["sum"] = np.float32(total)
    mean = found["mean"] = mean_of(total, part.shape[-1], unit["mean"])
    v = found["eps"] = held(mean + held(np.float32(unit["epsilon"]), unit["eps"]), unit["eps"])
    if unit["root"]["kind"] == "divide":
        found["root"] = held(np.sqrt(v), unit["root"]["format"])
        y = z / found["root"]
    else:
        found["root"] = inverse(v, unit["root"])
        y = z * found["root"]
    y = found["product"] = held(y, unit["product"])
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
