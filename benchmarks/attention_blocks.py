"""What it saves to take a long window's queries in blocks: attention in blocks and in one piece.

    python benchmarks/attention_blocks.py --out benchmarks/results/attention_blocks_cpu.json

The whole of `Attention`, its four maps of rows included, forward and with the gradient of its
weights, on windows of several lengths: grouped heads of 64 as SmolLM2-135M has them, and the local
ones of Gemma-3-270M, 256 elements each and 512 tokens back. Both ways take turns; a ratio is the
median over rounds of the time in blocks by that in one piece. Temporaries, in MiB, are what XLA
says the compiled gradient needs beside its arguments and results.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from outcome import keep
from turns import in_turns

from normlab.model import Context, ModelConfig, attention
from normlab.model.placement import ResidualConfig

SHAPES = {
    "SmolLM2-135M": ModelConfig(layers=1, width=576, heads=9, kv_heads=3),
    "Gemma-3-270M, local": ModelConfig(
        layers=1, width=640, heads=4, kv_heads=1, head_dim=256, window=512
    ),
}


@contextmanager
def queries(size: int) -> Iterator[None]:
    """So many queries at once."""
    usual, attention.QUERIES = attention.QUERIES, size
    try:
        yield
    finally:
        attention.QUERIES = usual


def programs(config: ModelConfig, length: int) -> dict[str, Any]:
    """The compiled passes, forward and gradient, in blocks and in one piece."""
    module = attention.Attention(
        config, ResidualConfig(), lambda *_: None, config.window is not None, nnx.Rngs(0)
    )
    graphdef, weights = nnx.split(module)
    x = jax.random.normal(jax.random.key(0), (1, length, config.width))

    def forward(weights: Any, x: Any) -> Any:
        return nnx.merge(graphdef, weights)(x, Context())

    def gradient(weights: Any, x: Any) -> Any:
        return jax.grad(lambda weights: jnp.sum(forward(weights, x) ** 2))(weights)

    found = {}
    for way, size in (("in blocks", attention.QUERIES), ("in one piece", length)):
        with queries(size):
            for name, f in (("forward", forward), ("gradient", gradient)):
                # A function of its own: JAX would take the other way's trace for the same one's.
                traced = jax.jit(lambda weights, x, f=f: f(weights, x))
                found[f"{name} {way}"] = traced.lower(weights, x).compile(), weights, x
    return found


def compared(config: ModelConfig, length: int, rounds: int) -> dict[str, float]:
    """Ratios of times, and the gradient's temporaries."""
    compiled = programs(config, length)
    calls = {
        name: lambda of=of: jax.block_until_ready(of[0](*of[1:])) for name, of in compiled.items()
    }
    seconds = in_turns(calls, rounds)
    result = {}
    for name in ("forward", "gradient"):
        pairs = zip(seconds[f"{name} in blocks"], seconds[f"{name} in one piece"], strict=True)
        result[f"{name}, ratio"] = statistics.median(a / b for a, b in pairs)
    for way in ("in blocks", "in one piece"):
        sizes = compiled[f"gradient {way}"][0].memory_analysis()
        result[f"temporaries {way}, MiB"] = sizes.temp_size_in_bytes / 2**20
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    measured = {
        shape: {length: compared(config, length, asked.rounds) for length in asked.lengths}
        for shape, config in SHAPES.items()
    }
    keep({"measured": measured, "rounds": asked.rounds}, asked.out)


if __name__ == "__main__":
    main()
