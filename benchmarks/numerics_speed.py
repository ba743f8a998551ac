"""What a precision costs: a whole model's forward pass in each, over the same in fp32.

    python benchmarks/numerics_speed.py --width 576 --layers 8 --batch 4 --length 512
    python benchmarks/numerics_speed.py --width 4096 --layers 1 --batch 1 --length 512

All variants stay compiled and take turns; a ratio is the median over rounds of (precision / fp32)
within one round, so that a busy machine slows both. `fp32 again` is the noise of the measurement.
Rows are observed in every variant, as an evaluation does, but in those marked `unobserved`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from turns import in_turns

from normlab.config import build
from normlab.model import Context, ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormConfig
from normlab.numerics import Precision

PRECISIONS = (
    "fp32",
    "fp32 again",
    "fp32 unobserved",
    "fp16:sequential",
    "fp16:pairwise",
    "fp16:pairwise unobserved",
    "fp16:lanes(8)",
    "fp16:lanes(64)",
    "fp16:blocks(16)",
    "fp16:rounded",
    "bf16:pairwise",
    "fp8_e5m2:pairwise",
    "fp8_e4m3:pairwise",
    "e6m9:pairwise",
    "fp16.flush.saturate:pairwise",
    "fp16.stochastic(0):pairwise",
    "fp16:pairwise.onepass",
    "fp16:pairwise.input",
    "fp16:pairwise.mean",
)


def forward(model: Transformer, variant: str):
    """`f(tokens)`: the mean log-probability of the next token, and what the norms saw."""
    structure, state = nnx.split(model)
    precision, _, kind = variant.partition(" ")
    chosen, observe = Precision.parse(precision), kind != "unobserved"

    @jax.jit
    def run(state, tokens):
        context = Context(chosen, observe=observe)
        logits = nnx.merge(structure, state)(tokens, context)
        chances = jax.nn.log_softmax(logits[:, :-1])
        return jnp.take_along_axis(chances, tokens[:, 1:, None], -1).mean(), context.observed

    return lambda tokens: run(state, tokens)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""By the wall, or the processor time of all threads, which other programs disturb less."""


def ratios(
    runs: dict, tokens: jax.Array, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Median seconds and median ratio to fp32 of each run, taken in turns."""
    calls = {name: lambda run=run: jax.block_until_ready(run(tokens)) for name, run in runs.items()}
    seconds = in_turns(calls, rounds, clock)
    base = seconds["fp32"]
    return {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(t / b for t, b in zip(taken, base, strict=True)),
            "ratio of minima": min(taken) / min(base),
        }
        for name, taken in seconds.items()
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", default="rmsnorm")
    parser.add_argument("--placement", default="pre")
    for name, default in (("width", 576), ("layers", 8), ("batch", 4), ("length", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="*", default=PRECISIONS, help="of these variants")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    config = ModelConfig(layers=args.layers, width=args.width, heads=args.width // 64)
    norm = build(NormConfig, {"type": args.norm})
    model = Transformer(config, norm, PlacementConfig(args.placement), args.vocab)
    tokens = np.random.default_rng(0).integers(0, args.vocab, (args.batch, args.length))
    runs = {p: forward(model, p) for p in args.only}
    measured = ratios(runs, jnp.asarray(tokens), args.rounds, CLOCKS[args.clock])
    for name, row in measured.items():
        print(f"{name:20s}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    machine = f"{jax.default_backend()}, {os.cpu_count()} CPUs, {platform.machine()}"
    load = os.getloadavg()[0]
    record = {"settings": settings, "machine": machine, "load": load, "jax": jax.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"numerics_speed_{args.norm}_{args.width}_{jax.default_backend()}.json"
    path.write_text(json.dumps({**record, "measured": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
