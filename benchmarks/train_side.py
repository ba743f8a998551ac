"""One side of a comparison of training: a process of its own that takes steps when it is told to.

Each library and each checkout has a process, so that no thread of one waits on the other's time and
each has an interpreter of its own. All train on the same tokens in the same shape.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[int], float]
"""One step of training on the batch of that number; its loss."""


@dataclass(frozen=True)
class Shape:
    """A decoder with a tied head and no biases, and its batch.

    With `llama` it has RMSNorm, rotary positions and a gated SiLU; else LayerNorm, learned
    positions and GELU, as GPT-2.
    """

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    batch: int
    llama: bool = False

    @property
    def hidden(self) -> int:
        """Elements inside the MLP."""
        return -(-8 * self.width // 24) * 8 if self.llama else 4 * self.width

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix that rows are multiplied with in one pass."""
        d, m = self.width, self.hidden
        block = [(d, d)] * 4 + [(d, m)] * (2 if self.llama else 1) + [(m, d)]
        return [*block * self.layers, (d, self.vocabulary)]

    @property
    def flops(self) -> int:
        """Of a step: two for each weight and token, 4·T·d for attention in each layer, thrice.

        As in PaLM's appendix B (Chowdhery et al. 2022, arXiv:2204.02311): attention counts as if it
        were not causal, and nothing is counted for what is computed twice.
        """
        products = 2 * sum(i * o for i, o in self.maps)
        attention = 4 * self.layers * self.width * self.context
        return 3 * (products + attention) * self.batch * self.context

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """A few batches of random tokens: inputs and targets."""
        shape = (8, self.batch, self.context + 1)
        ids = np.random.default_rng(0).integers(0, self.vocabulary, shape, dtype=np.int32)
        return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


SHAPES = {
    "small": Shape(4, 128, 4, 128, 2048, 16, llama=True),
    "nanogpt": Shape(6, 384, 6, 256, 8192, 8),
    "gpt2": Shape(12, 768, 12, 256, 50304, 4),
}
"""model=small; nanoGPT's shape for a small machine; GPT-2 of 124M parameters."""


class Side:
    """A process that runs `train_ours` or `train_peer` under `python`."""

    def __init__(self, module: str, shape: Shape, python: Path, *checkout: Path):
        path = os.pathsep.join(map(str, (Path(__file__).parent, *checkout)))
        code = f"import {module}; {module}.main()"
        command = [str(python), "-P", "-c", code, json.dumps(asdict(shape))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        self.versions: dict[str, str] = self._answer()

    def take(self, name: str, steps: int) -> dict[str, float]:
        """Seconds of a step of that name by each clock, and the last loss."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, steps]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))}: ended, see above")
        return json.loads(line)


def serve(makers: Mapping[str, Callable[[Shape], Step]], versions: Mapping[str, str]) -> None:
    """Be the process of a `Side`: make what is asked for at the first time, and time it."""
    shape, steps = Shape(**json.loads(sys.argv[1])), dict[str, Step]()
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name, count = json.loads(line)
        step = steps.get(name) or steps.setdefault(name, makers[name](shape))
        wall, processor = time.perf_counter(), time.process_time()
        losses = [step(i) for i in range(count)]
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        found = {"wall": wall / count, "processor": processor / count, "loss": losses[-1]}
        print(json.dumps(found), flush=True)
