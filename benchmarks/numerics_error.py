"""How wrong is 1/RMS: the table (format × order × d) of its mean and worst relative error.

    python benchmarks/numerics_error.py                    # Gaussian rows, d = 128 … 8192
    python benchmarks/numerics_error.py --rows inputs.npy  # rows recorded elsewhere, [n, d]
    python benchmarks/numerics_error.py --model runs/NAME  # what a trained model's norms see
    python benchmarks/numerics_error.py --model smollm2-135m --model gemma3-270m

A model's rows come from all its norms of its own width, on 512 tokens of validation text, each
site's divided by its median norm. Rows are divided by s = 2^round(log2 median ‖x‖), so that Σx² is
about 1: what remains is the error of the accumulation, not of the range. The reference is float64.
Writes NAME.csv and NAME.png into benchmarks/results, and prints the table.
"""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from normlab import pretrained
from normlab.data import DataConfig, load_corpus
from normlab.model import Context
from normlab.numerics import FloatFormat, sum_of_squares
from normlab.plots import captioned, figure, look, save
from normlab.runs import run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("fp16", "bf16", "fp8_e5m2", "fp8_e4m3")
ORDERS = ("sequential", "lanes8", "lanes64", "pairwise", "blocks4", "blocks16", "exact_then_round")
WIDTHS = (128, 256, 576, 1024, 2048, 4096, 8192)
FIELDS = ("d", "format", "order", "rows", "mean", "worst", "overflowed", "subnormal", "zero")

ROWS = {"gaussian": "Gaussian rows", "recorded": "rows that models' norms read"}

total = jax.jit(sum_of_squares, static_argnums=1)


def site_inputs(spec: str) -> list[np.ndarray]:
    """What each norm of the model's own width sees, [tokens, d]: a run directory or a name."""
    lm = run.load(spec) if Path(spec).is_dir() else pretrained.load(spec)
    text = load_corpus(DataConfig(corpus="auto-raw")).text("valid")[:10_000]
    length = min(512, lm.model.config.max_length)
    tokens = lm.tokenizer.encode(text).ids[:length][None]
    graphdef, params = nnx.split(lm.model)

    @jax.jit
    def inputs(params):
        context = Context(capture=True)
        nnx.merge(graphdef, params)(tokens, context)
        return context.inputs

    rows = [np.asarray(x[0]) for x in inputs(params).values()]
    return [x for x in rows if x.shape[-1] == lm.model.config.width]


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, evenly taken."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def recorded(spec: str, count: int) -> np.ndarray:
    """Norm inputs of a model, [count, d], over its sites, each site's by its median norm."""
    sites = site_inputs(spec)
    scaled = np.concatenate([x / np.median(np.linalg.norm(x, axis=-1)) for x in sites])
    return spread(scaled, count)


def measure(x: np.ndarray, name: str, order: str) -> dict:
    """The errors of 1/RMS over the rows x [n, d] that stay in range, and how many do not."""
    s = 2.0 ** np.round(np.log2(np.median(np.linalg.norm(x, axis=-1))))
    z = np.float32(x / s)
    got = np.asarray(total(z, f"{name}:{order}"), np.float64)
    fits = np.isfinite(got) & (got > 0)
    exact = (z.astype(np.float64) ** 2).sum(-1)
    error = np.sqrt(exact[fits] / got[fits]) - 1
    tiny = FloatFormat.parse(name).smallest_normal
    return {
        "d": x.shape[-1],
        "format": name,
        "order": order,
        "rows": len(x),
        "mean": float(error.mean()) if fits.any() else float("nan"),
        "worst": float(np.abs(error).max()) if fits.any() else float("nan"),
        "overflowed": int((~np.isfinite(got)).sum()),
        "subnormal": int(((got > 0) & (got < tiny)).sum()),
        "zero": int((got == 0).sum()),
    }


def table(results: list[dict]) -> str:
    """One table a format in Markdown: mean / worst error by order and d."""
    lines = []
    widths = sorted({r["d"] for r in results})
    for name in FORMATS:
        lines += [f"\n### {name}\n", f"| order | {' | '.join(f'd = {d}' for d in widths)} |"]
        lines.append("| --- |" + " --- |" * len(widths))
        for order in ORDERS:
            cells = [_cell(r) for r in results if (r["format"], r["order"]) == (name, order)]
            lines.append(f"| {order} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(r: dict) -> str:
    if r["zero"] == r["rows"]:
        return "Σ = 0"
    out = "".join(f", {r[k]} {k}" for k in ("overflowed", "subnormal", "zero") if r[k])
    return f"{r['mean']:+.1e} / {r['worst']:.1e}{out}"


def drawn(results: list[dict], rows: str) -> "Figure":
    """The worst error over d, a panel a format, a line an order; of which rows."""
    made, axes = figure(1, len(FORMATS), (11, 3.6), sharey=True)
    for axis, name in zip(axes[0], FORMATS, strict=True):
        for i, order in enumerate(ORDERS):
            chosen = [r for r in results if (r["format"], r["order"]) == (name, order)]
            x, y = [r["d"] for r in chosen], [r["worst"] for r in chosen]
            colour, marker = look(i)
            at = np.argsort(x)  # models come as they were named
            axis.loglog(*np.array([x, y])[:, at], color=colour, marker=marker, ms=4, label=order)
        axis.set(title=name, xlabel="d")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("worst relative error of 1/RMS")
    title = f"Worst relative error of 1/RMS over the row's length d, by format and order: {rows}"
    return captioned(made, *axes[0, 0].get_legend_handles_labels(), title)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, help=".npy of recorded rows [n, d]; default: Gaussian")
    parser.add_argument("--model", action="append", help="run directory or pretrained name")
    parser.add_argument("--count", type=int, default=256, help="rows for each d")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    if args.rows:
        rows = np.load(args.rows)
        batches = [rows.reshape(-1, rows.shape[-1])[: args.count]]
    elif args.model:
        batches = [recorded(spec, args.count) for spec in args.model]
    else:
        batches = [rng.standard_normal((args.count, d)) for d in WIDTHS]
    results = [measure(x, name, o) for x in batches for name in FORMATS for o in ORDERS]
    kind = args.rows.stem if args.rows else "recorded" if args.model else "gaussian"
    name = f"numerics_error_{kind}"
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(results)
    save(drawn(results, ROWS.get(kind, kind)), args.out / name)
    (args.out / f"{name}.svg").unlink()
    print(f"Relative error of 1/RMS, mean / worst of {args.count} rows, Σx² ≈ 1.\n{table(results)}")


if __name__ == "__main__":
    main()
