"""What figures are drawn of: records and runs as they are left behind, made in no time."""

import json
import math
from dataclasses import replace

import numpy as np

from normlab.numerics.histogram import BINS, edges, packed
from normlab.runs.run import Run
from tests.support.records import grouped

RNG = np.random.default_rng(0)


def histogram(values):
    """By the edges, in float64, of values that lie between them."""
    return np.bincount(np.searchsorted(edges(), np.log2(values).ravel(), "right") - 1, None, BINS)


def site(norms, scale=None):
    """What a record says of rows with these norms [heads, rows] under a scale for each head."""
    s = 1.0 if scale is None else np.asarray(scale)
    made = {
        "median_norm": float(np.median(norms)),
        "max_norm": float(norms.max()),
        "squares": packed(histogram(norms**2)),
        "sums": packed(histogram(norms**2 / s**2)),
    }
    return made if scale is None else made | {"scale": np.asarray(scale).tolist()}


def record(precision, delta=0.0, scales=(None, None, None)):
    rows = [RNG.uniform(1, 900, (2, 50)), RNG.uniform(20, 30, (2, 50)), RNG.uniform(4, 9, (2, 50))]
    names = ("blocks.0.attention.norm_in", "blocks.1.attention.norm_in", "norm_final")
    sites = {n: site(r, s) for n, r, s in zip(names, rows, scales, strict=True)}
    return grouped(
        precision, "m", precision, norm="rmsnorm", placement="pre", dataset="d", split="valid",
        protocol="window", window=8, windows=3, perplexity=20 + delta, delta=delta,
        delta_stderr=abs(delta) / 4, rows=300, overflowed_rows=30 if delta > 1 else 0, sites=sites,
        scale_rule="slanc" if scales[0] else None,
    )  # fmt: skip


def size(x):
    return {"mean_square": x, "max_abs": 3 * x, "max_square": 32 * x}


def line(step, scale):
    return {
        "step": step,
        "sites": {f"blocks.{i}.mlp.norm_in": size(scale * (i + 1)) for i in range(2)}
        | {"blocks.1.attention.branch.query.norm_qk": size(0.5), "norm_final": size(5 * scale)},
        "stream": [size(scale * (1 + i)) for i in range(3)],
        "blocks": [{"attention_score": scale}, {"attention_score": 2 * scale}],
        "parts": {
            "embed": {"grad_norm": 9.0},
            "blocks.0": {"grad_norm": 0.5 * scale} | ({"update_ratio": 0.1} if step else {}),
            "blocks.1": {"grad_norm": 0.25 * scale} | ({"update_ratio": 0.3} if step else {}),
        },
        "vectors": {
            f"blocks.{i}.{kind}": {"mean": 1.0 + i, "min": 0.5, "max": 3.0, "std": 0.1}
            for i in range(2)
            for kind in (
                "mlp.norm_in.weight",
                "attention.branch.query.norm_qk.weight",
                "mlp.up.bias",
            )
        }
        | {"norm_final.weight": {"mean": scale, "min": -1.0, "max": 2 * scale, "std": 0.1}},
    }


def make(directory, placement, rate, seed, loss, state="finished", scale=1.0):
    """A run directory as `train` leaves it, as far as figures read it."""
    run = Run(directory / f"{placement}-{rate}-{seed}")
    config = {
        "norm": {"type": "rmsnorm"},
        "placement": {"type": placement, "norm_embed": False},
        "optimizer": {"lr": rate},
        "seed": seed,
    }
    run.write("config.yaml", config)
    run.write("record.json", {"state": state, "best_valid_loss": loss})
    rows = [{"step": 0, "valid_loss": 9.0}, {"step": 4, "valid_loss": loss}]
    run["metrics.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    looks = [line(0, 1.0), line(4, scale)]
    run["diagnostics.jsonl"].write_text("".join(json.dumps(look) + "\n" for look in looks))
    return run


def eight(folder):
    """Two placements, two rates, two seeds; the higher rate is better for one of them."""
    made = []
    for placement, losses in {"pre": (5.0, math.inf), "peri": (6.0, 4.0)}.items():
        for rate, loss in zip((1e-3, 1e-2), losses, strict=True):
            for seed in (0, 1):
                lost = (placement, rate, seed) == ("pre", 1e-2, 1)
                shown = 4.5 if loss == math.inf else loss
                scale = 1000.0 if placement == "pre" else 2.0
                state = "diverged" if lost else "finished"
                made.append(make(folder, placement, rate, seed, shown + seed, state, scale))
    return made


def called(r, name):
    """The record of a model of that name."""
    return replace(r, model=replace(r.model, name=name))


def cut_off(made):
    """What of a drawn figure is not whole: beyond the canvas, or a panel's title over another."""
    made.draw_without_rendering()
    inside, (width, height) = made.get_tightbbox(), made.get_size_inches()
    found = [f"{side} {by:.2f} in" for side, by in (
        ("left", -inside.x0), ("right", inside.x1 - width),
        ("below", -inside.y0), ("above", inside.y1 - height),
    ) if by > 0.01]  # fmt: skip
    titles = [t for ax in made.axes for t in (ax.title, ax._left_title) if t.get_text()]
    boxes = [t.get_window_extent() for t in titles]
    return found + [
        f"{titles[i].get_text()!r} over {titles[k].get_text()!r}"
        for i in range(len(boxes)) for k in range(i) if boxes[i].overlaps(boxes[k])
    ]  # fmt: skip
