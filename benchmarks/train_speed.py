"""How fast a step of training is, beside PyTorch's and beside another checkout's.

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 numpy
    python benchmarks/train_speed.py small --torch PEER/bin/python --old ../8e88a28 \
        --out benchmarks/results/train_speed_small_cpu.json

One network on all sides, on random tokens that lie ready: `small` is `model=small`'s (RMSNorm,
rotary positions, gated SiLU), `nanogpt` and `gpt2` have GPT-2's (LayerNorm, learned positions,
GELU). One step is forward, backward, clipping at 1.0 and AdamW.

Each side is a process of its own. Sides take turns, there and back again; seconds are the median
over rounds, a ratio is the median over rounds of the ratio within one round, so that a busy machine
slows both. Beside the wall's time stands the processor time of all threads of that side.

"products" are the step's matrix products alone, x W, g Wᵀ and xᵀ g of each map of rows and the six
of attention, on arrays that lie ready, in the step's parts and by as many threads; "beside
products" is the share of the step that is not theirs. Model FLOPs are counted as in PaLM
(`train_side.Shape.flops`).
"""

import argparse
import dataclasses
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from outcome import keep
from train_side import SHAPES, Shape, Side

Times = dict[str, list[dict[str, float]]]
"""Of each variant what each round measured."""
CLOCKS = ("wall", "processor")


def sides(asked: argparse.Namespace, shape: Shape) -> dict[str, Side]:
    """A process of each library and checkout that was given."""
    here = Path(__file__).parent.parent
    found = {"normlab": Side("train_ours", shape, Path(sys.executable), here)}
    if asked.old:
        python = asked.old / ".venv" / "bin" / "python"
        found["old"] = Side("train_ours", shape, python.absolute(), asked.old.absolute())
    if asked.torch:
        found["torch"] = Side("train_peer", shape, asked.torch)
    return found


def variants(asked: argparse.Namespace, there: dict[str, Side]) -> list[tuple[str, str]]:
    """Side and name of everything that takes turns."""
    found = []
    for dtype in asked.dtypes:
        for products in asked.products:
            name = f"{products} {dtype}"
            found += [("normlab", name), ("normlab", f"{name} products")]
        found += [("old", f"xla {dtype}")] if "old" in there else []
        peers = [("torch", f"{kind} {dtype}") for kind in ("eager", "compiled")]
        found += peers if "torch" in there else []
    return found


def measure(asked: argparse.Namespace, there: dict[str, Side]) -> Times:
    """Seconds of a step in each round, after a step that compiles."""
    names = variants(asked, there)
    for side, name in names:
        print(f"{side} {name}: loss {there[side].take(name, 1)['loss']:.3f}", flush=True)
    found: Times = {f"{side} {name}": [] for side, name in names}
    for turn in range(asked.rounds):
        for side, name in names[:: 1 if turn % 2 else -1]:
            found[f"{side} {name}"].append(there[side].take(name, asked.steps))
        print(f"round {turn + 1} of {asked.rounds}", flush=True)
    return found


def ratio(a: list[dict[str, float]], b: list[dict[str, float]], clock: str = "wall") -> float:
    """Median over rounds of a's time over b's."""
    return statistics.median(x[clock] / y[clock] for x, y in zip(a, b, strict=True))


def summary(times: Times, shape: Shape) -> dict[str, Any]:
    """Seconds, speed over each peer of the same dtype, share of the step beside its products."""
    rows: dict[str, Any] = {}
    for name, found in times.items():
        row = {f"{c} ms": 1e3 * statistics.median(r[c] for r in found) for c in CLOCKS}
        row |= {f"least {c} ms": 1e3 * min(r[c] for r in found) for c in CLOCKS}
        if not name.endswith("products"):
            row["GFLOP/s"] = shape.flops / row["wall ms"] / 1e6
        if name.startswith("normlab") and not name.endswith("products"):
            dtype = name.split()[-1]
            for peer in (f"old xla {dtype}", f"torch eager {dtype}", f"torch compiled {dtype}"):
                if peer in times:
                    row |= {f"over {peer} ({c})": ratio(times[peer], found, c) for c in CLOCKS}
            products = times[f"{name} products"]
            row |= {f"beside products ({c})": 1 - ratio(products, found, c) for c in CLOCKS}
        rows[name] = row
    return rows


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    for field in dataclasses.fields(Shape)[:-1]:
        parser.add_argument(f"--{field.name}", type=int, help="another one than the shape's")
    parser.add_argument("--old", type=Path, help="another checkout, with a .venv of its own")
    parser.add_argument("--torch", type=Path, help="an interpreter that has PyTorch")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--products", nargs="+", default=["xla"], help="xla, onednn (jax 0.12)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="in each turn")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    asked = parsed()
    told = {f.name: getattr(asked, f.name, None) for f in dataclasses.fields(Shape)}
    told = {name: value for name, value in told.items() if value is not None}
    shape = dataclasses.replace(SHAPES[asked.shape], **told)
    there = sides(asked, shape)
    rows = summary(measure(asked, there), shape)
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    result = {
        "shape": dataclasses.asdict(shape), "GFLOP": shape.flops / 1e9,
        "rounds": asked.rounds, "steps in a turn": asked.steps, "measured": rows,
        "versions of each side": {name: side.versions for name, side in there.items()},
        "load": os.getloadavg()[1],
    }  # fmt: skip
    keep(result, asked.out)


if __name__ == "__main__":
    main()
