"""The formula of each norm type, written apart from the code under test.

In float64 NumPy, or in Python's unbounded integers where the norm computes in integers.
"""

import math

import numpy as np
from flax import nnx


def parameters(norm):
    """What the norm stores, by name, in float64."""
    flat = nnx.to_flat_state(nnx.state(norm))
    return {path[-1]: np.array(variable[...], np.float64) for path, variable in flat}


def affine(c, p, y):
    """γ ⊙ y + β, each where it is stored."""
    y = y * (p["weight"] + getattr(c, "one_plus", False)) if "weight" in p else y
    return y + p["bias"] if "bias" in p else y


def over_rms(c, x, part=slice(None)):
    """The rows over their root mean square, by the first coordinates where `part` says so."""
    square = (x[..., part] ** 2).mean(-1, keepdims=True)
    divisors = {
        "under": np.sqrt(square + c.eps),
        "added": np.sqrt(square) + c.eps,
        "floor": np.maximum(np.sqrt(square), c.eps),
    }
    return x / divisors[getattr(c, "eps_form", "under")]


def reference(norm, x, p=None):
    """What `norm` should give for the rows x.

    Args:
        norm: only its config and its width are read where `p` is given.
        x: rows.
        p: parameters and state by name.
    """
    c, x, d = norm.config, np.float64(x), norm.width
    p = parameters(norm) if p is None else p
    match c.type:
        case "layernorm" | "rmsnorm":
            return affine(c, p, over_rms(c, centred(c, x)))
        case "prmsnorm":
            return affine(c, p, over_rms(c, x, slice(max(1, math.floor(d * c.share)))))
        case "scalenorm" | "fixnorm":
            size = np.sqrt((x**2).sum(-1, keepdims=True))
            return p["length"] * x / np.maximum(size, c.eps)
        case "groupnorm":
            parts = x.reshape(*x.shape[:-1], c.groups, -1)
            parts = over_rms(c, parts - parts.mean(-1, keepdims=True))
            return affine(c, p, parts.reshape(x.shape))
        case "batchnorm":
            return affine(c, p, (x - p["mean"]) / np.sqrt(p["variance"] + c.eps))
        case "seednorm":
            parts = (x * p["direction"]).reshape(*x.shape[:-1], c.heads or 1, -1)
            along = np.repeat(parts.sum(-1), parts.shape[-1], axis=-1)
            return (np.tanh(along) * p["alpha"] + p.get("weight", 0.0)) * over_rms(c, x)
        case "tapernorm":
            weight, factor = p.get("weight", 1.0), p["scaled_square"] / max(p["square"], 1e-300)
            linear = factor * x * (weight + p["delta"])
            return p["gate"] * over_rms(c, x) * weight + (1 - p["gate"]) * linear
        case "dyt":
            return affine(c, p, np.tanh(p["alpha"] * x))
        case "derf":
            return affine(c, p, np.vectorize(math.erf)(p["alpha"] * x + p["shift"]))
        case "bhyt" | "bhyt-estimated":  # the one is the other but before an MLP
            return affine(c, p, np.tanh(p["lam"] / c.kappa * over_rms(c, x)))
        case "none":
            return x + p.get("shift", 0.0)
    if c.type in FORMULAS:
        return affine(c, p, FORMULAS[c.type](c, x))
    raise NotImplementedError(f"norm {c.type!r} has no reference here: write one")


def centred(c, x):
    """The rows less their mean, where the config centres."""
    return x - x.mean(-1, keepdims=True) if c.center else x


def exact(c, x):
    """LayerNorm or RMSNorm without its parameters, in float64."""
    y = centred(c, np.float64(x))
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + c.eps)


def _l1(c, x):
    y = centred(c, np.float64(x))
    size = np.sqrt(np.pi / 2) * np.abs(y).mean(-1, keepdims=True)
    return y / np.sqrt(size**2 + c.eps)


def _dropped_mean(c, x):
    x = np.float64(x)
    return centred(c, x) / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps)


def _by_root(c, x, root):
    y = centred(c, np.float64(x))
    v = (y**2).mean(-1, keepdims=True) + c.eps
    return y * np.vectorize(root)(v)


def fast_rsqrt(v, steps):
    """The bit trick over the reals: a float's bits grow by one from value to value."""
    f, e = math.frexp(v)
    bits = 0x5F3759DF - ((e + 126) + (2 * f - 1)) * 2**23 / 2
    whole = math.floor(bits / 2**23)
    a = math.ldexp(1 + bits / 2**23 - whole, whole - 127)
    for _ in range(steps):
        a = a * (1.5 - 0.5 * v * a * a)
    return a


def iterl2(m, steps, rate):
    """IterL2Norm's a for ‖y‖² = m."""
    e = math.frexp(m)[1] - 1
    a = 2.0 ** (-(e + 1) / 2)
    for _ in range(steps):
        a += rate * 2.0**-e * m * a * (1 - m * a * a)
    return a


def dyadic(r, bits):
    """(b, c) for the multiplier b/2^c nearest r."""
    f, e = math.frexp(r)
    return math.floor(f * 2**bits + 0.5), bits - e


def quantized(x, bits, floor=0.0):
    """A row's integers and its scale, by float32 as the norm's input is."""
    most = np.float32(2 ** (bits - 1) - 1)
    top = max(np.abs(x).max(), np.float32(floor))
    q = np.round(x * (most / top))  # at 24 bits the largest can round to one above `most`
    return [int(v) for v in np.clip(q, -most, most)], top * np.float32(1 / most)


def i_bert_row(x, c):
    """One row of I-BERT's LayerNorm in Python's integers."""
    q, scale = quantized(x, c.bits, math.sqrt(c.eps))
    d = len(q)
    mean = (sum(q) + d // 2) // d if c.center else 0
    y = [value - mean for value in q]
    eps = round(float(np.float32(math.sqrt(c.eps)) / scale))
    room = (30 - (d - 1).bit_length()) // 2
    shift = max(0, max(eps, *map(abs, y)).bit_length() - room)
    n = sum((value >> shift) ** 2 + (eps >> shift) ** 2 for value in y)
    std = math.isqrt(n) << shift
    factor = 2**31 // std if std else 0
    return np.array([value * factor // 2 for value in y]) * (math.sqrt(d) / 2**30)


def ai_layernorm_row(x, c):
    """One row of AILayerNorm, in Python's integers up to the root."""
    top, most = np.abs(x).max(), np.float32(127 * 2**c.factors)
    d, total, total_square, whole = len(x), 0, 0, []
    for value in x * (most / top):
        a = next((a for a in range(c.factors) if abs(value) <= 127.5 * 2**a), c.factors)
        size = min(round(abs(float(value)) / 2**a), 127)
        shift, back = (4, 8) if size >= 64 else (2, 4)
        short = min((size + (2 ** (shift - 1) if c.rounding else 0)) >> shift, 15)
        whole.append(int(math.copysign(size << a, value)))
        total += whole[-1]
        total_square += (short**2 << back) << (2 * a)
    mean = total / d if c.center else 0.0
    variance = max(total_square / d - mean**2, 0.0)
    return (np.array(whole) - mean) / math.sqrt(variance + c.eps * float(most / top) ** 2)


def _rows(row):
    return lambda c, x: np.stack([row(np.float32(one), c) for one in x])


FORMULAS = {
    "l1": _l1,
    "dropped-mean": _dropped_mean,
    "max-rescale": exact,
    "doubled": exact,
    "fast-rsqrt": lambda c, x: _by_root(c, x, lambda v: fast_rsqrt(v, c.steps)),
    "iterl2": lambda c, x: _by_root(
        c, x, lambda v: math.sqrt(x.shape[-1]) * iterl2(v * x.shape[-1], c.steps, c.rate)
    ),
    "dyadic": lambda c, x: _by_root(
        c, x, lambda v: math.ldexp(*(lambda b, s: (b, -s))(*dyadic(v**-0.5, c.bits)))
    ),
    "i-bert": _rows(i_bert_row),
    "ai-layernorm": _rows(ai_layernorm_row),
}
"""(config, rows) → the normalized rows before gain and bias, by norm type."""
