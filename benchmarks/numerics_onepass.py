"""What LayerNorm's variance loses in one pass: Σz²/d − μ² beside Σ(z−μ)²/d.

    python benchmarks/numerics_onepass.py --out benchmarks/results/numerics_onepass.json

Gaussian rows of standard deviation 1 and mean r, r = 0.1 … 100, divided by a power of two, so that
Σz² is about 1. The error is that of 1/σ against float64. A variance of zero or less has none; such
rows are counted.
"""

import argparse
import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import outcome
from jax import Array

from normlab.numerics import Accumulator

FORMATS = ("fp32", "fp16", "bf16", "fp8_e5m2")
ORDERS = ("sequential", "lanes8", "pairwise", "blocks16", "exact_then_round")
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@functools.partial(jax.jit, static_argnums=1)
def variance(z: Array, precision: str) -> Array:
    """The accumulated variance of each row, [n, 1]."""
    return Accumulator(precision).moments(z, center=True)[1]


def measure(rows: np.ndarray, name: str, order: str, form: str) -> dict:
    """Worst and mean size of the error of 1/σ over rows [n, d], and the rows that have no σ."""
    z = np.float32(rows / 2.0 ** np.round(np.log2(np.median(np.linalg.norm(rows, axis=-1)))))
    text = f"{name}{'.onepass' * (form == 'onepass')}:{order}"
    found = np.asarray(variance(z, text), np.float64)[:, 0]
    fits = np.isfinite(found) & (found > 0)
    error = np.abs(np.sqrt(np.var(z.astype(np.float64), axis=-1)[fits] / found[fits]) - 1)
    return {
        "format": name,
        "order": order,
        "form": form,
        "mean": float(error.mean()) if fits.any() else None,
        "worst": float(error.max()) if fits.any() else None,
        "lost": int((~fits).sum()),
    }


def measured(width: int, count: int) -> list[dict]:
    """Every ratio, format, order and form."""
    noise = np.random.default_rng(0).standard_normal((count, width))
    found = []
    for ratio, name, order in itertools.product(RATIOS, FORMATS, ORDERS):
        for form in ("twopass", "onepass"):
            found.append({"ratio": ratio} | measure(noise + ratio, name, order, form))
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--count", type=int, default=256, help="rows of each ratio")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = measured(args.width, args.count)
    outcome.keep({"width": args.width, "rows": args.count, "errors": rows}, args.out)


if __name__ == "__main__":
    main()
