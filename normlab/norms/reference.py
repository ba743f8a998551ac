"""What the references of several norms share, in float64 NumPy or in Python's integers.

Each norm has its formula once more as `reference`, written apart from `__call__`; tests hold the
two together, in values and in slopes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from normlab.numerics.eps import EpsForm

Rows = np.ndarray
"""[*batch, d], float64."""
Params = Mapping[str, np.ndarray]
"""A norm's parameters and state by name, float64."""


def affine(y: Rows, config: Any, params: Params) -> Rows:
    """γ ⊙ y + β, each where it is stored."""
    if "weight" in params:
        y = y * (params["weight"] + getattr(config, "one_plus", False))
    return y + params["bias"] if "bias" in params else y


def centred(x: Rows, config: Any) -> Rows:
    """The rows less their mean, where the config centres."""
    return x - x.mean(-1, keepdims=True) if config.center else x


def over_rms(x: Rows, config: Any, part: slice = slice(None)) -> Rows:
    """The rows over their root mean square, of the coordinates in `part`, ε where it stands."""
    square = (x[..., part] ** 2).mean(-1, keepdims=True)
    form = EpsForm(getattr(config, "eps_form", "under"))
    return x / form.divisor(square, config.eps)


def by_root(x: Rows, config: Any, root: Callable[[float], float]) -> Rows:
    """The rows times what `root` makes of their variance + ε, one number at a time."""
    y = centred(x, config)
    return y * np.vectorize(root)((y**2).mean(-1, keepdims=True) + config.eps)


def fast_rsqrt(v: float, steps: int) -> float:
    """1/√v by the bit trick over the reals: a float's bits grow by one from value to value."""
    f, e = math.frexp(v)
    bits = 0x5F3759DF - ((e + 126) + (2 * f - 1)) * 2**23 / 2
    whole = math.floor(bits / 2**23)
    a = math.ldexp(1 + bits / 2**23 - whole, whole - 127)
    for _ in range(steps):
        a = a * (1.5 - 0.5 * v * a * a)
    return a


def iterl2(m: float, steps: int, rate: float) -> float:
    """IterL2Norm's a, near 1/√m, for ‖y‖² = m."""
    e = math.frexp(m)[1] - 1
    a = 2.0 ** (-(e + 1) / 2)
    for _ in range(steps):
        a += rate * 2.0**-e * m * a * (1 - m * a * a)
    return a


def dyadic(r: float, bits: int) -> tuple[int, int]:
    """(b, c) of the multiplier b/2^c nearest r."""
    f, e = math.frexp(r)
    return math.floor(f * 2**bits + 0.5), bits - e


def quantized(x: np.ndarray, bits: int, floor: float = 0.0) -> tuple[list[int], np.float32]:
    """A row's integers and its scale, by float32 as the norm's input is."""
    most = np.float32(2 ** (bits - 1) - 1)
    top = max(np.abs(x).max(), np.float32(floor))
    q = np.round(x * (most / top))  # at 24 bits the largest can round to one above `most`
    return [int(v) for v in np.clip(q, -most, most)], top * np.float32(1 / most)


def i_bert_row(x: np.ndarray, config: Any) -> np.ndarray:
    """One float32 row [d] of I-BERT's LayerNorm in Python's integers."""
    q, scale = quantized(x, config.bits, math.sqrt(config.eps))
    d = len(q)
    mean = (sum(q) + d // 2) // d if config.center else 0
    y = [value - mean for value in q]
    eps = round(float(np.float32(math.sqrt(config.eps)) / scale))
    room = (30 - (d - 1).bit_length()) // 2
    shift = max(0, max(eps, *map(abs, y)).bit_length() - room)
    n = sum((value >> shift) ** 2 + (eps >> shift) ** 2 for value in y)
    std = math.isqrt(n) << shift
    factor = 2**31 // std if std else 0
    return np.array([value * factor // 2 for value in y]) * (math.sqrt(d) / 2**30)


def ai_layernorm_row(x: np.ndarray, config: Any) -> np.ndarray:
    """One float32 row [d] of AILayerNorm, in Python's integers up to the root."""
    top, most = np.abs(x).max(), np.float32(127 * 2**config.factors)
    d, total, total_square, whole = len(x), 0, 0, []
    for value in x * (most / top):
        a = next((a for a in range(config.factors) if abs(value) <= 127.5 * 2**a), config.factors)
        size = min(round(abs(float(value)) / 2**a), 127)
        shift, back = (4, 8) if size >= 64 else (2, 4)
        short = min((size + (2 ** (shift - 1) if config.rounding else 0)) >> shift, 15)
        whole.append(int(math.copysign(size << a, value)))
        total += whole[-1]
        total_square += (short**2 << back) << (2 * a)
    mean = total / d if config.center else 0.0
    variance = max(total_square / d - mean**2, 0.0)
    return (np.array(whole) - mean) / math.sqrt(variance + config.eps * float(most / top) ** 2)


def by_row(row: Callable[[np.ndarray, Any], np.ndarray], x: Rows, config: Any) -> Rows:
    """A function of one float32 row, on each of [n, d] rows."""
    return np.stack([row(one, config) for one in x.astype(np.float32)])
