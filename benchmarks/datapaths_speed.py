"""The norms' own time in each datapath, as a share of a forward pass.

    python benchmarks/datapaths_speed.py --out benchmarks/results/datapaths_speed_cpu.json

The same model without norms takes turns with each datapath: share = 1 − time without / time with,
the median over rounds. Nothing is observed but in `… observed`, which is what an evaluation does.
By default in processor time, which other programs disturb less. The share is of blocks and a small
vocabulary; a real one's head makes it smaller.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from outcome import keep
from turns import in_turns

from normlab.config import build
from normlab.model import Context, ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormConfig
from normlab.numerics import arithmetic, datapaths

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def forward(model: Transformer, column: str, tokens: Any) -> Any:
    """A call of the whole pass."""
    structure, state = nnx.split(model)
    name, _, kind = column.partition(" ")
    path, observe = arithmetic(name), kind == "observed"

    @jax.jit
    def run(state: Any, tokens: Any) -> Any:
        context = Context(path, observe=observe)
        return nnx.merge(structure, state)(tokens, context).sum(), context.observed

    return lambda: jax.block_until_ready(run(state, tokens))


def main() -> None:
    """Measure, print, keep."""
    presets = [name for name in datapaths if datapaths[name].variance is None]
    centring = [name for name in datapaths if datapaths[name].variance is not None]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("width", 576), ("layers", 2), ("batch", 2), ("length", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    columns = ["fp32", *presets, *centring]
    parser.add_argument("--only", nargs="+", default=[*columns, "simd16-table64 observed"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config = ModelConfig(layers=asked.layers, width=asked.width, heads=asked.width // 64)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 8192, (asked.batch, asked.length)))

    def call(norm: str, column: str) -> Any:
        made = build(NormConfig, {"type": norm})
        model = Transformer(config, made, PlacementConfig("pre"), 8192)
        return forward(model, column, tokens)

    base, shares = call("none", "fp32"), {}
    for column in asked.only:
        norm = "layernorm" if column.split()[0] in centring else "rmsnorm"
        calls = {"without": base, column: call(norm, column)}
        taken = in_turns(calls, asked.rounds, CLOCKS[asked.clock])
        pairs = zip(taken["without"], taken[column], strict=True)
        parts = [1 - without / whole for without, whole in pairs]
        low, middle, high = statistics.quantiles(parts, n=4, method="inclusive")
        shares[column] = {"share": middle, "low": low, "high": high}
        print(f"{column:28s} {middle:7.1%}  ({low:.1%} to {high:.1%})", flush=True)
    told = {k: v for k, v in vars(asked).items() if k not in ("out", "only")}
    keep({"settings": told, "load": os.getloadavg()[0], "shares": shares}, asked.out)


if __name__ == "__main__":
    main()
