"""Each scale rule on a post-norm encoder, which has no perplexity: what becomes of its norms' rows.

    python benchmarks/encoder_scales.py --out benchmarks/results/encoder_scales.json

all-MiniLM-L6-v2 (LayerNorm behind every sum, 6 blocks, d = 384) reads the first windows of
WikiText-2's raw test split. By rule: rows whose sum leaves the format, rows that underflow harms,
the sizes of the scaled sums, and how far the last rows are from those of fp32.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab import pretrained
from normlab.data import DataConfig, load_corpus
from normlab.model import Context
from normlab.numerics import Precision
from normlab.scaling import scale_rules, scales

MODEL = "all-minilm-l6-v2"
ORDERS = ("pairwise", "sequential")
COUNTS = (
    "overflowed",
    "zero",
    "above",
    "below_normal",
    "below_subnormal",
    "precision_loss",
    "underflow_errors",
)


def tokens(lm: Any, split: str, windows: int, length: int) -> np.ndarray:
    """Consecutive windows of a split's text, [windows, length]."""
    corpus = load_corpus(DataConfig(corpus="auto-raw"))
    text = corpus.text(split)[: 12 * windows * length]  # more than enough characters
    ids = lm.tokenizer.encode(text).ids[: windows * length]
    return np.asarray(ids, np.int32).reshape(windows, length)


@partial(jax.jit, static_argnums=(0, 1))
def last_rows(graphdef: Any, precision: Precision, params: Any, given: Any, ids: Any) -> Any:
    """What leaves the last norm, and what every norm saw."""
    context = Context(precision, given, observe=True, capture=True)
    nnx.merge(graphdef, params)(ids, context)
    return context.streams[-1], context.observed


def row(name: str, observed: dict[str, Any], rows: Any, exact: Any) -> dict[str, Any]:
    """A rule's line."""
    seen = list(observed.values())
    error = np.linalg.norm(rows - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    return {
        "precision": name,
        "rows": int(sum(int(o.rows) for o in seen)),
        **{count: int(sum(int(getattr(o, count)) for o in seen)) for count in COUNTS},
        "mean_error_of_last_rows": float(error.mean()),
        "worst_error_of_last_rows": float(error.max()),
    }


def main() -> None:
    """Read, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=MODEL, help="a post-norm encoder")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lm = pretrained.load(asked.model)
    graphdef, params = nnx.split(lm.model)
    ids = tokens(lm, "test", asked.windows, asked.length)
    calibration = jnp.asarray(tokens(lm, "valid", 8, asked.length))
    exact, _ = jax.device_get(last_rows(graphdef, Precision.parse("fp32"), params, {}, ids))
    given = {r: scales(lm.model, r, calibration=calibration) for r in scale_rules}
    lines = []
    for order in ORDERS:
        plain = Precision.parse(f"fp16:{order}")
        for rule in (None, *given):
            rows, seen = jax.device_get(
                last_rows(graphdef, plain, params, given.get(rule, {}), ids)
            )
            name = f"fp16:{order}" + (f"+{rule}" if rule else "")
            lines.append(row(name, seen, rows, exact))
            print(json.dumps(lines[-1]))
    if asked.out:
        result = {
            "model": asked.model,
            "windows": asked.windows,
            "length": asked.length,
            "rules": lines,
        }
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
