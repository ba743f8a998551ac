"""The norms' own time in each datapath, as a share of a forward pass.

    python benchmarks/datapaths_speed.py --out benchmarks/results/datapaths_speed_cpu.json

The model's n norms, each of rows of its own and all in one program, take turns with the same
model's pass without norms. The share is t / (pass + t), the median over rounds: a bound from above,
for in the model a norm is fused with what is beside it. In processor time, which other programs
disturb less.
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
from normlab.norms import NormConfig, NormContext, Site, norms
from normlab.numerics import Accumulator, datapaths

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def forward(asked: argparse.Namespace) -> Any:
    """A call of the pass without norms."""
    config = ModelConfig(layers=asked.layers, width=asked.width, heads=asked.width // 64)
    made = Transformer(config, build(NormConfig, {"type": "none"}), PlacementConfig("pre"), 8192)
    structure, state = nnx.split(made)
    ids = np.random.default_rng(0).integers(0, 8192, (asked.batch, asked.length))
    run = jax.jit(lambda state, ids: nnx.merge(structure, state)(ids, Context()).sum())
    tokens = jnp.asarray(ids)
    return lambda: jax.block_until_ready(run(state, tokens))


def alone(column: str, asked: argparse.Namespace) -> Any:
    """A call of the norms."""
    centres = column in datapaths and datapaths[column].variance is not None
    kind = norms["layernorm" if centres else "rmsnorm"]
    made = [kind(asked.width, Site("norm_in", "here"), kind.Config()) for _ in norm_sites(asked)]
    structure, state = nnx.split(nnx.List(made))
    shape = (len(made), asked.batch, asked.length, asked.width)
    rows = list(jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))
    told = NormContext(Accumulator(column))

    @jax.jit
    def run(state: Any, rows: list[jax.Array]) -> list[jax.Array]:
        return [norm(x, told) for norm, x in zip(nnx.merge(structure, state), rows, strict=True)]

    return lambda: jax.block_until_ready(run(state, rows))


def norm_sites(asked: argparse.Namespace) -> range:
    """Two a layer, and the last."""
    return range(2 * asked.layers + 1)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("width", 576), ("layers", 2), ("batch", 2), ("length", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--only", nargs="+", default=["fp32", *datapaths])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    calls = {"pass": forward(asked)} | {name: alone(name, asked) for name in asked.only}
    taken, shares = in_turns(calls, asked.rounds, CLOCKS[asked.clock]), {}
    for name in asked.only:
        pairs = zip(taken["pass"], taken[name], strict=True)
        parts = [own / (whole + own) for whole, own in pairs]
        low, middle, high = statistics.quantiles(parts, n=4, method="inclusive")
        shares[name] = {"share": middle, "low": low, "high": high}
        print(f"{name:28s} {middle:7.1%}  ({low:.1%} to {high:.1%})", flush=True)
    told = {k: v for k, v in vars(asked).items() if k not in ("out", "only")}
    keep({"settings": told, "load": os.getloadavg()[0], "shares": shares}, asked.out)


if __name__ == "__main__":
    main()
