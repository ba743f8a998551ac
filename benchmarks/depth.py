"""What depth costs a step: seconds to compile it and memory, unrolled, scanned, rematerialized.

    python benchmarks/depth.py --out benchmarks/results/depth_cpu.json

One model at several depths, each step compiled by itself without a cache, the ways of computing it
in turns. "compile" is the time of XLA alone, "lower" that of Python and JAX before it, both in
seconds, the median over rounds; "temporary" is what XLA says the compiled step needs beside its
arguments and results, in MiB: activations kept for the way back, and gradients. These do not vary.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from outcome import keep

from normlab.model import ComputeConfig, ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.stacked import stacked
from normlab.training.step import learned, make_step

WAYS = {
    "unrolled": ComputeConfig(),
    "remat": ComputeConfig(remat=True),
    "scan": ComputeConfig(scan_layers=True),
    "scan, remat": ComputeConfig(scan_layers=True, remat=True),
}


def prepared(asked: argparse.Namespace, layers: int, compute: ComputeConfig) -> Any:
    """The jitted step of a model so deep, and what it is called with."""
    config = ModelConfig(
        layers=layers, width=asked.width, heads=asked.heads, max_length=asked.context
    )
    norm = norms["rmsnorm"].Config()
    model = Transformer(config, norm, PlacementConfig("pre"), asked.vocabulary)
    model = stacked(model) if compute.scan_layers else model
    graphdef, params = nnx.split(model)
    weights = learned(params)
    optimizer = make_optimizer(AdamWConfig(), 1000, weights, compute.scan_layers)
    step = make_step(graphdef, optimizer, 0, 1000, compute)
    ids = np.zeros((asked.batch, asked.context), np.int32)
    return step, (params, optimizer.init(weights), np.int32(0), ids, ids)


def compiled(asked: argparse.Namespace, layers: int, compute: ComputeConfig) -> dict[str, float]:
    """Seconds to lower and to compile the step, and MiB of its temporaries."""
    step, arguments = prepared(asked, layers, compute)
    jax.clear_caches()
    times = [time.perf_counter()]
    lowered = step.func.lower(*step.args, *arguments)
    times.append(time.perf_counter())
    program = lowered.compile()
    times.append(time.perf_counter())
    temporary = program.memory_analysis().temp_size_in_bytes / 2**20
    return {"lower": times[1] - times[0], "compile": times[2] - times[1], "temporary": temporary}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shape = {"width": 384, "heads": 6, "context": 256, "vocabulary": 8192, "batch": 8}
    for name, value in (shape | {"rounds": 3}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(asked.rounds):
        for layers in asked.layers:
            for name, compute in WAYS.items():
                found.setdefault((layers, name), []).append(compiled(asked, layers, compute))
    rows = [
        {"layers": layers, "way": name}
        | {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for (layers, name), rounds in found.items()
    ]
    for row in rows:
        print(
            f"{row['layers']:3} layers, {row['way']}: lower {row['lower']:.1f} s, compile "
            f"{row['compile']:.1f} s, temporary {row['temporary']:,.0f} MiB"
        )
    keep({"rows": rows, "shape": {k: getattr(asked, k) for k in (*shape, "rounds")}}, asked.out)


if __name__ == "__main__":
    main()
