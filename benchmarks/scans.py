"""What the scans over a row cost: the survey's five-scan norm, its "faster" tail, the fused form.

    python benchmarks/scans.py --rows 2048 --width 768

A norm of one row with a scalar weight λ and bias β (what the survey calls BatchNorm) as a list of
passes. Each pass reads the rows from memory and, where it changes them, writes them back: it is a
compiled program of its own, as XLA's CPU backend drops an optimization barrier before it fuses.
`xla` is the same formula as one program. Passes are counted from the list; bytes are those of XLA's
cost model, added over the programs. The variants take turns; a ratio is the median over rounds of
time / the five-scan form's. Writes scans_ROWSxWIDTH_BACKEND.json into benchmarks/results.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from turns import in_turns

EPS = 1e-5
State = dict[str, Array]
Pass = Callable[[State], State]


def _mean(s: State) -> State:
    return {"mean": s["x"].mean(-1, keepdims=True)}


def _variance(s: State) -> State:
    return {"variance": jnp.square(s["x"] - s["mean"]).mean(-1, keepdims=True)}


def _normalize(s: State) -> State:
    return {"x": (s["x"] - s["mean"]) / jnp.sqrt(s["variance"] + EPS)}


def _times_weight(s: State) -> State:
    return {"x": s["x"] * s["weight"]}


def _plus_bias(s: State) -> State:
    return {"x": s["x"] + s["bias"]}


def _minus_mean(s: State) -> State:
    return {"x": s["x"] + -s["mean"]}


def _times_factor(s: State) -> State:
    return {"x": s["x"] * (s["weight"] / jnp.sqrt(s["variance"] + EPS))}


def _moments(s: State) -> State:
    """Σx and Σx² in one program; in float32 the variance cancels where |μ| is far above σ."""
    mean = s["x"].mean(-1, keepdims=True)
    return {"mean": mean, "variance": jnp.square(s["x"]).mean(-1, keepdims=True) - mean * mean}


def _moments_at_once(s: State) -> State:
    """The same as one reduction of two operands: XLA's CPU backend reads the rows again for two."""
    x, zero = s["x"], jnp.float32(0)
    total, square = lax.reduce((x, x * x), (zero, zero), _add_both, (x.ndim - 1,))
    mean = total[..., None] / x.shape[-1]
    return {"mean": mean, "variance": square[..., None] / x.shape[-1] - mean * mean}


def _add_both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]


def _apply(s: State) -> State:
    """Y = a·x + b with a = λ/√(σ² + ε), b = β − a·μ."""
    a = s["weight"] / jnp.sqrt(s["variance"] + EPS)
    return {"x": a * s["x"] + (s["bias"] - a * s["mean"])}


FORMS: dict[str, tuple[Pass, ...]] = {
    "five-scan": (_mean, _variance, _normalize, _times_weight, _plus_bias),
    "faster tail": (_mean, _variance, _minus_mean, _times_factor, _plus_bias),
    "two-pass statistic": (_mean, _variance, _apply),
    "fused, two reductions": (_moments, _apply),
    "fused": (_moments_at_once, _apply),
}
"""Passes of each form. The survey's "faster" tail has as many as what it replaces."""


def one_by_one(form: str) -> Callable[..., Array]:
    """(x [n, d], weight, bias) → the normalized rows, by the compiled passes of a form."""
    passes = [jax.jit(one) for one in FORMS[form]]

    def run(x: Array, weight: Array, bias: Array) -> Array:
        state = {"x": x, "weight": weight, "bias": bias}
        for one in passes:
            state |= one(state)
        return state["x"]

    return run


@jax.jit
def _left_to_xla(x: Array, weight: Array, bias: Array) -> Array:
    state = {"x": x, "weight": weight, "bias": bias}
    for one in FORMS["two-pass statistic"]:
        state |= one(state)
    return state["x"]


def variants() -> dict[str, Callable]:
    """Every form pass by pass, and one left to XLA."""
    return {name: one_by_one(name) for name in FORMS} | {"xla": _left_to_xla}


def ratios(runs: dict[str, Callable], given: tuple, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and median ratio to the five-scan form, taken in turns."""
    calls = {name: lambda run=run: jax.block_until_ready(run(*given)) for name, run in runs.items()}
    seconds = in_turns(calls, rounds)
    return {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(
                t / b for t, b in zip(taken, seconds["five-scan"], strict=True)
            ),
        }
        for name, taken in seconds.items()
    }


def bytes_accessed(name: str, given: tuple) -> float:
    """Bytes that a variant's programs read and write, by XLA's cost model; NaN without one."""
    if name == "xla":
        return _bytes(_left_to_xla, *given)
    total, state = 0.0, dict(zip(("x", "weight", "bias"), given, strict=True))
    for one in FORMS[name]:
        total += _bytes(jax.jit(one), state)
        state |= one(state)
    return total


def _bytes(call: Any, *given: Any) -> float:
    cost = call.lower(*given).compile().cost_analysis() or {}
    return float(cost.get("bytes accessed", float("nan")))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    x = np.random.default_rng(0).normal(0.3, 2.0, (args.rows, args.width))
    given = (jnp.float32(x), jnp.float32(1.5), jnp.float32(-0.25))
    runs = variants()
    measured = ratios(runs, given, args.rounds)
    for name, row in measured.items():
        row["passes"] = len(FORMS[name]) if name in FORMS else float("nan")
        row["bytes of x"] = bytes_accessed(name, given) / given[0].nbytes
        print(f"{name:20s}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    machine = f"{jax.default_backend()}, {os.cpu_count()} CPUs, {platform.machine()}"
    record = {"rows": args.rows, "width": args.width, "rounds": args.rounds, "machine": machine}
    record |= {"load": os.getloadavg()[0], "jax": jax.__version__, "measured": measured}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"scans_{args.rows}x{args.width}_{jax.default_backend()}.json"
    path.write_text(json.dumps(record, indent=2).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
