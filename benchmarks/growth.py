"""How time and memory grow with layers, width, window, vocabulary, columns and corpus.

    python benchmarks/growth.py --out benchmarks/results/growth_cpu.json

Each point is a process of its own: a training step of one batch, or an evaluation of one batch in
some columns. One axis grows, the other sizes stay. "seconds" is the median of a few calls after the
first one, "peak" what the process held at most, compiling and all, over what it held once jax
was imported. "work" is FLOPs, "held" the bytes of what must be held: an evaluation's weights and
one batch's logits, twice where columns are compared; a step's weights, their gradients, two
moments, and what a layer keeps of each token for the way back. An exponent is the slope of
logarithms between the last two points: time should grow no faster than work, memory no faster than
what is held. A corpus, in megabytes, is read, split and tokenized: its work is its bytes, and
nothing of its size is held. `docs/results/figures/draw.py` draws it.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import keep
from tokenization import config, whole, write_corpus

SIZES = {"layers": 4, "width": 256, "window": 256, "vocabulary": 4096, "columns": 1}
AXES = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "window": (128, 256, 512, 1024),
    "vocabulary": (2048, 4096, 8192, 16384),
    "columns": (1, 2, 4, 8),
    "corpus": (4, 8, 16, 32),
}
COLUMNS = ("fp32", "fp16", "fp16:lanes8", "fp16:sequential", "bf16", "bf16:lanes8", "e5m7", "e4m7")
KINDS = {"columns": ("evaluate",), "corpus": ("tokenize",)}
BATCH, HEAD = 4, 64


def status(name: str) -> float:
    """MiB by the kernel's count for this process: VmRSS, VmHWM."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


def work(what: str, s: dict[str, int]) -> tuple[float, float]:
    """FLOPs of a call, and the bytes that it must hold, of a Llama-like model of such sizes."""
    d, tokens, hidden = s["width"], BATCH * s["window"], 8 * s["width"] / 3
    maps = s["layers"] * (4 * d * d + 3 * d * hidden)
    once = 2 * tokens * (maps + d * s["vocabulary"])
    once += 4 * tokens * s["window"] * d * s["layers"]
    weights, logits = 4 * (maps + d * s["vocabulary"]), 4 * tokens * s["vocabulary"]
    if what == "evaluate":
        return once * s["columns"], weights + logits * min(s["columns"], 2)
    scores = s["window"] * d / HEAD
    kept = 4 * tokens * s["layers"] * (8 * d + 4 * hidden + scores)
    return 3 * once, 4 * weights + kept + 2 * logits


def point(what: str, s: dict[str, int], calls: int) -> dict[str, float]:
    """Seconds and MiB of one point, in this process."""
    import jax
    import numpy as np

    from normlab.config import build
    from normlab.model import ModelConfig, PlacementConfig, Transformer
    from normlab.norms import NormConfig

    before = (jax.devices(), status("VmRSS"))[1]
    shape = {"layers": s["layers"], "width": s["width"], "heads": max(1, s["width"] // HEAD)}
    config = build(ModelConfig, shape | {"max_length": s["window"]})
    norm = build(NormConfig, {"type": "rmsnorm"})
    model = Transformer(config, norm, PlacementConfig("pre"), s["vocabulary"])
    rows = (BATCH, s["window"] + 1)
    ids = np.random.default_rng(0).integers(0, s["vocabulary"], rows, dtype=np.int32)
    call = {"train": training, "evaluate": evaluation}[what](model, ids, s)
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak_mib": round(status("VmHWM") - before, 1)}


def training(model: Any, ids: Any, s: dict[str, int]) -> Callable[[], Any]:
    """A step as `python -m train` takes it."""
    import numpy as np
    from flax import nnx

    from normlab.training.optimizers import make_optimizer
    from normlab.training.optimizers.adamw import AdamWConfig
    from normlab.training.parts import parts_in_cache
    from normlab.training.step import learned, make_step

    graphdef, params = nnx.split(model)
    optimizer = make_optimizer(AdamWConfig(), 1000, learned(params))
    parts = parts_in_cache(BATCH, s["window"], s["width"])
    step = make_step(graphdef, optimizer, 0, 1000, parts=parts)
    held = [params, optimizer.init(learned(params))]

    def call() -> float:
        held[0], held[1], metrics = step(*held, np.int32(0), ids[:, :-1], ids[:, 1:])
        return float(metrics["loss"])

    return call


def evaluation(model: Any, ids: Any, s: dict[str, int]) -> Callable[[], Any]:
    """A batch's columns as `python -m evaluate compare=true` has them."""
    from evaluation_speed import windows

    from normlab.evaluation.perplexity import Scaled, score_columns
    from normlab.numerics import arithmetic

    text = windows(BATCH, s["window"], s["vocabulary"])
    columns = [Scaled(arithmetic(column)) for column in COLUMNS[: s["columns"]]]
    return lambda: score_columns(model, text, columns, batch=BATCH)


def tokenized(megabytes: int) -> dict[str, float]:
    """A corpus of that size, tokenized in a process of its own."""
    asked = argparse.Namespace(vocabulary=SIZES["vocabulary"])
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(file := Path(folder) / "corpus.txt", megabytes)
        _, most, seconds = whole(config(file, asked))
        size = file.stat().st_size
    peak = most - whole({})[1]
    return {"corpus": megabytes, "seconds": seconds, "peak_mib": peak, "work": size, "held_mib": 1}


def slope(values: list[float], over: list[float]) -> float:
    """Between the last two points, of logarithms."""
    return round(math.log(values[-1] / values[-2]) / math.log(over[-1] / over[-2]), 2)


def computed(what: str, axis: str, value: int, asked: argparse.Namespace) -> dict[str, float]:
    """One point in a process of its own."""
    sizes = SIZES | {axis: value}
    command = [sys.executable, __file__, "--point", what, json.dumps(sizes)]
    done = subprocess.run(
        [*command, "--calls", str(asked.calls)], check=True, capture_output=True, text=True,
        env=os.environ | {"NORMLAB_XLA_CACHE": "off"},
    )  # fmt: skip
    flops, held = work(what, sizes)
    found = json.loads(done.stdout.splitlines()[-1])
    return {axis: value} | found | {"work": flops, "held_mib": round(held / 2**20, 1)}


def measured(what: str, axis: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The points of one axis, and their exponents."""
    rows = []
    for value in AXES[axis][: asked.points]:
        rows.append(tokenized(value) if axis == "corpus" else computed(what, axis, value, asked))
        print(what, rows[-1], flush=True)
    over = [float(row[axis]) for row in rows]
    names = ("seconds", "work", "peak_mib", "held_mib")
    exponents = {name: slope([row[name] for row in rows], over) for name in names}
    return {"what": what, "axis": axis, "points": rows, "exponents": exponents}


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--point", nargs=2, metavar=("WHAT", "SIZES"), help="one point, as JSON")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(point(asked.point[0], json.loads(asked.point[1]), asked.calls)))
        return
    found = [
        measured(what, axis, asked)
        for axis in asked.axes
        for what in KINDS.get(axis, ("train", "evaluate"))
    ]
    result = {"sizes": SIZES | {"batch": BATCH}, "growth": found}
    keep(result, asked.out)


if __name__ == "__main__":
    main()
