"""What a look inside the model costs (`diagnostics_every`), beside a step of its training.

    python benchmarks/watch_cost.py --out benchmarks/results/watch_cost_cpu.json

A look is a line of diagnostics.jsonl: a forward and a backward pass over 8 sequences, sizes of
every norm's input, of the stream and of attention's scores, gradients' norms and the last update,
fetched from the device. It is given with the copy of the weights that the last update needs.
Step and look take turns; a ratio is the median over rounds of that within one round.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from outcome import keep
from turns import in_turns

from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms
from normlab.runs.run import Run
from normlab.training.diagnostics import Diagnostics
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.parts import parts_of
from normlab.training.step import learned, make_step


def calls(asked: argparse.Namespace, directory: Path) -> dict[str, Callable[[], Any]]:
    """A step of training, and a look as the training loop takes it."""
    config = ModelConfig(
        layers=asked.layers, width=asked.width, heads=asked.heads, max_length=asked.context
    )
    norm = norms["rmsnorm"].Config()
    model = Transformer(config, norm, PlacementConfig("pre"), asked.vocabulary)
    graphdef, params = nnx.split(model)
    optimizer = make_optimizer(AdamWConfig(), 1000, learned(params))
    parts = parts_of(model, asked.batch, asked.context)
    step = make_step(graphdef, optimizer, 0, 1000, parts=parts)
    shape = (asked.batch, asked.context + 1)
    ids = np.random.default_rng(0).integers(0, asked.vocabulary, shape, dtype=np.int32)
    texts = ids[:, :-1], ids[:, 1:]
    watch = Diagnostics(Run(directory), graphdef, 1000, 1, texts)
    held = [params, optimizer.init(learned(params))]

    def stepped() -> None:
        held[0], held[1], metrics = step(*held, np.int32(0), *texts)
        jax.block_until_ready((held, metrics))

    def looked() -> None:
        watch.before(1, held[0])
        watch.after(1, held[0])

    return {"step": stepped, "look": looked}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shape = {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocabulary": 8192, "batch": 8}
    for name, value in (shape | {"rounds": 9}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        seconds = in_turns(calls(asked, Path(directory)), asked.rounds)
    ratios = [look / step for look, step in zip(seconds["look"], seconds["step"], strict=True)]
    ratio = statistics.median(ratios)
    result = {
        "milliseconds": {name: 1e3 * statistics.median(s) for name, s in seconds.items()},
        "look_over_step": ratio,
        "percent_of_training": {every: 100 * ratio / every for every in (10, 100, 1000)},
        "shape": {name: getattr(asked, name) for name in (*shape, "rounds")},
    }
    keep(result, asked.out)


if __name__ == "__main__":
    main()
