"""How wrong are the approximate and the integer norms: the relative error of their output rows.

    python benchmarks/approximate_error.py                        # Gaussian rows only
    python benchmarks/approximate_error.py --model smollm2-135m   # and what its norms see

Each norm, without weight and bias, stands for a LayerNorm (`center`) and for an RMSNorm. The
reference is that norm in float64. Of a row the error is ‖y − y*‖ / ‖y*‖; the weight is the mean of
⟨y, y*⟩ / ⟨y*, y*⟩ − 1, a constant factor that a γ could absorb; `beyond` is the mean error that is
left when each row is divided by its own factor. A model's rows come from all its norms of its own
width, on 512 tokens of validation text, as they are.
Deterministic. Writes approximate_error.json and .md into benchmarks/results.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from numerics_error import site_inputs, spread

from normlab.norms import Site, norms

WIDTHS = (128, 576, 768, 4096)
EPS = 1e-5
NORMS: tuple[tuple[str, dict], ...] = (
    ("rmsnorm", {}),
    ("max-rescale", {}),
    ("doubled", {}),
    *(("fast-rsqrt", {"steps": n}) for n in (0, 1, 2)),
    *(("iterl2", {"steps": n}) for n in (5, 8, 10)),
    *(("dyadic", {"bits": n}) for n in (4, 8, 16)),
    ("dropped-mean", {}),
    ("l1", {}),
    *(("i-bert", {"bits": n}) for n in (8, 12, 16, 20)),
    *(("ai-layernorm", {"factors": n, "rounding": r}) for n in (0, 3) for r in (False, True)),
)
SITE = Site("norm_final", "norm_final")


def output(name: str, fields: dict, center: bool, x: np.ndarray) -> np.ndarray:
    """The norm's rows, in float64; no weight and no bias."""
    config = norms[name].Config(eps=EPS, center=center, use_weight=False, bias=False, **fields)
    norm = norms[name](x.shape[-1], SITE, config)
    return np.asarray(jax.jit(lambda x: norm(x))(x), np.float64)


def reference(center: bool, x: np.ndarray) -> np.ndarray:
    """LayerNorm or RMSNorm in float64."""
    x = x.astype(np.float64)
    x = x - x.mean(-1, keepdims=True) if center else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def measure(rows: str, x: np.ndarray, center: bool, name: str, fields: dict) -> dict:
    """The errors of one norm on the rows x [n, d]."""
    y, wanted = output(name, fields, center, x), reference(center, x)
    size = np.linalg.norm(wanted, axis=-1)
    factor = (y * wanted).sum(-1) / size**2
    error = np.linalg.norm(y - wanted, axis=-1) / size
    beyond = np.linalg.norm(y / factor[:, None] - wanted, axis=-1) / size
    return {
        "rows": rows,
        "d": x.shape[-1],
        "count": len(x),
        "for": "layernorm" if center else "rmsnorm",
        "norm": name,
        "fields": fields,
        "mean": float(error.mean()),
        "worst": float(error.max()),
        "weight": float(factor.mean() - 1),
        "beyond": float(beyond.mean()),
    }


def table(results: list[dict], kind: str) -> str:
    """Mean / worst error, and the weight, by norm and rows."""
    columns = list(dict.fromkeys((r["rows"], r["d"]) for r in results))
    heads = " | ".join(f"{rows}, d = {d}" for rows, d in columns)
    lines = [f"\n### In place of {kind}\n", f"| norm | {heads} |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for name, fields in NORMS:
        cells = {
            (r["rows"], r["d"]): f"{r['mean']:.1e} / {r['worst']:.1e} ({100 * r['weight']:+.2f} %)"
            for r in results
            if (r["norm"], r["fields"], r["for"]) == (name, fields, kind)
        }
        label = " ".join([name, *(f"{key}={value}" for key, value in fields.items())])
        if cells:
            lines.append(f"| {label} | {' | '.join(cells.get(c, '') for c in columns)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], help="run directory or name")
    parser.add_argument("--count", type=int, default=256, help="rows for each d and model")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="d of Gaussian rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    batches = [("Gaussian", np.float32(rng.standard_normal((args.count, d)))) for d in args.widths]
    for spec in args.model:
        rows = spread(np.concatenate(site_inputs(spec)), args.count)
        batches.append((Path(spec).name, np.float32(rows)))
    results = [
        measure(rows, x, center, name, fields)
        for rows, x in batches
        for center in (True, False)
        for name, fields in NORMS
        if not (center and name == "doubled")  # it can't centre
    ]
    head = (
        f"Relative error of the output row, mean / worst of {args.count} rows (and the weight).\n"
    )
    text = head + table(results, "layernorm") + table(results, "rmsnorm")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "approximate_error.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "approximate_error.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
