"""The fused Pallas kernel against XLA's own fusion, and against Liger's Triton kernels if there.

    python benchmarks/kernel_speed.py --rows 16384 --width 4096     # on a GPU
    python benchmarks/kernel_speed.py --rows 8 --width 16 --rounds 2 --bandwidth 10  # dry run

Forward, and forward with backward, of RMSNorm and LayerNorm; the latter gives y and the gradients
of x, gain and bias. All take turns; a ratio is the median over rounds of time / XLA's. The share of
bandwidth is the least traffic (forward: x read, y written; both: x and dy read, y and dx written,
though passes apart read x twice) over time, over `--bandwidth`: the GPU's peak in GB/s, from its
data sheet. On a CPU the kernels are interpreted, and their times mean nothing.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from fused_norm import fused_norm
from turns import in_turns

from normlab.numerics import Accumulator

FORWARD_MOVES, BOTH_MOVES = 2, 4  # times the array, in the forward pass and in both


def norms_of(center: bool, block: int) -> dict[str, Callable]:
    """(x, weight, bias) → y by each implementation."""

    def by_xla(precision: str) -> Callable:
        def norm(x, weight, bias):
            return Accumulator(precision).normalize(x, 1e-5, center=center) * weight + bias

        return norm

    def by_kernel(precision: str) -> Callable:
        return lambda x, weight, bias: fused_norm(
            x, weight, bias, 1e-5, center=center, precision=precision, block=block
        )

    return {
        f"{name} {precision}": make(precision)
        for precision in ("fp32", "fp16:pairwise")
        for name, make in (("xla", by_xla), ("kernel", by_kernel))
    }


def passes(norm: Callable, given: tuple) -> dict[str, tuple[Callable, int]]:
    """What is timed of a norm: a call without arguments, and how often it must move the array."""
    forward = jax.jit(norm)

    @jax.jit
    def both(x, weight, bias, dy):
        y, back = jax.vjp(norm, x, weight, bias)
        return y, back(dy)

    return {
        "forward": (lambda: jax.block_until_ready(forward(*given[:3])), FORWARD_MOVES),
        "forward and backward": (lambda: jax.block_until_ready(both(*given)), BOTH_MOVES),
    }


def triton_passes(center: bool, given: tuple) -> dict[str, tuple[Callable, int]]:
    """The same of Liger-Kernel's Triton kernels; nothing where they can't be imported."""
    try:
        import torch
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError:
        return {}
    x, weight, bias, weight = (torch.tensor(np.asarray(part), device="cuda") for part in given)
    leaves = [part.requires_grad_() for part in ((x, weight, bias) if center else (x, weight))]
    norm = LigerLayerNormFunction if center else LigerRMSNormFunction

    def forward():
        y = norm.apply(*leaves, 1e-5)
        torch.cuda.synchronize()
        return y

    def both():
        y = norm.apply(*leaves, 1e-5)
        gradients = torch.autograd.grad(y, leaves, weight)
        torch.cuda.synchronize()
        return y, gradients

    return {"forward": (forward, FORWARD_MOVES), "forward and backward": (both, BOTH_MOVES)}


def measure(center: bool, given: tuple, block: int, rounds: int, bandwidth: float) -> list[dict]:
    """A row a norm and pass."""
    timed = {name: passes(norm, given) for name, norm in norms_of(center, block).items()}
    if liger := triton_passes(center, given):
        timed["liger fp32"] = liger
    rows = []
    for part in ("forward", "forward and backward"):
        seconds = in_turns({name: both[part][0] for name, both in timed.items()}, rounds)
        for name, taken in seconds.items():
            base = seconds[f"xla {name.split(' ', 1)[1]}"]
            moved = timed[name][part][1] * given[0].nbytes
            rows.append(
                {
                    "norm": "layernorm" if center else "rmsnorm",
                    "pass": part,
                    "by": name,
                    "seconds": statistics.median(taken),
                    "ratio": statistics.median(t / b for t, b in zip(taken, base, strict=True)),
                    "bandwidth": moved / statistics.median(taken) / (1e9 * bandwidth),
                }
            )
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--block", type=int, default=1, help="rows a program, a power of two")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--bandwidth", type=float, required=True, help="peak, GB/s")
    parser.add_argument("--out", type=Path, help="folder for the JSON; none: print only")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    shapes = ((args.rows, args.width), (args.width,), (args.width,), (args.rows, args.width))
    given = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    rows = [
        row
        for center in (False, True)
        for row in measure(center, given, args.block, args.rounds, args.bandwidth)
    ]
    for row in rows:
        print(
            f"{row['norm']:10s} {row['pass']:21s} {row['by']:21s} {1e3 * row['seconds']:9.3f} ms"
            f"  {row['ratio']:6.2f} of xla's  {100 * row['bandwidth']:5.1f} % of bandwidth"
        )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        device = jax.devices()[0].device_kind.replace(" ", "_")
        path = args.out / f"kernel_speed_{args.rows}x{args.width}_{device}.json"
        settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
        path.write_text(json.dumps({"settings": settings, "measured": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
