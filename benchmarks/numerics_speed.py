"""What a precision costs: a whole model's forward pass in each, over the same in fp32.

    python benchmarks/numerics_speed.py --width 576 --layers 8 --batch 4 --length 512
    python benchmarks/numerics_speed.py --width 4096 --layers 1 --batch 1 --length 512

Each variant takes turns with fp32, call by call, so that a machine that slows down or speeds up
does so to both: a ratio is the median over rounds of (variant / fp32) of two calls side by side.
`fp32 again` is the noise of the measurement, and so are the quartiles of each ratio. Rows are
observed in every variant, as an evaluation does, but in those marked `unobserved`.
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
    "fp16:lanes8",
    "fp16:lanes64",
    "fp16:blocks16",
    "fp16:exact_then_round",
    "bf16:pairwise",
    "fp8_e5m2:pairwise",
    "fp8_e4m3:pairwise",
    "e6m9:pairwise",
    "fp16.flush.saturate:pairwise",
    "fp16.stochastic0:pairwise",
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
    """Median seconds of each run, and its ratio to fp32: quartiles over pairs, and of minima."""
    calls = {name: lambda run=run: jax.block_until_ready(run(tokens)) for name, run in runs.items()}
    base, measured = calls.pop("fp32"), {}
    for name, call in calls.items():
        taken = in_turns({"fp32": base, name: call}, rounds, clock)
        pairs = [t / b for t, b in zip(taken[name], taken["fp32"], strict=True)]
        low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
        measured[name] = {
            "seconds": statistics.median(taken[name]),
            "ratio": middle,
            "low": low,
            "high": high,
            "ratio of minima": min(taken[name]) / min(taken["fp32"]),
        }
        shown = "  ".join(f"{key} {value:.3f}" for key, value in measured[name].items())
        print(f"{name:28s} {shown}", flush=True)
    return measured


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
    parser.add_argument("--only", nargs="*", default=PRECISIONS[1:], help="of these variants")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    config = ModelConfig(layers=args.layers, width=args.width, heads=args.width // 64)
    norm = build(NormConfig, {"type": args.norm})
    model = Transformer(config, norm, PlacementConfig(args.placement), args.vocab)
    tokens = np.random.default_rng(0).integers(0, args.vocab, (args.batch, args.length))
    runs = {p: forward(model, p) for p in ("fp32", *args.only)}
    measured = ratios(runs, jnp.asarray(tokens), args.rounds, CLOCKS[args.clock])
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    machine = f"{jax.default_backend()}, {os.cpu_count()} CPUs, {platform.machine()}"
    load = os.getloadavg()[0]
    record = {"settings": settings, "machine": machine, "load": load, "jax": jax.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"numerics_speed_{args.norm}_{args.width}_{jax.default_backend()}.json"
    path.write_text(json.dumps({**record, "measured": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
