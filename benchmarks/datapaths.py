"""What each datapath costs a real model, and how its error grows from block to block.

    python benchmarks/datapaths.py gemma3-270m --out docs/results/datapaths-gemma3-270m.json

One program for a block, which all blocks of a kind share, so that a datapath is compiled in
seconds. The text is the first windows of WikiText-2's raw test split. By column: perplexity, its
difference to fp32, the share of tokens with the same likeliest next token, mean KL, and after each
block the median over tokens of ‖x − x'‖/‖x‖. A result is written after every column.
"""

import argparse
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from outcome import keep

from normlab.evaluation import kl
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.targets import targets
from normlab.evaluation.texts import Texts
from normlab.loss import token_nll
from normlab.model import Context
from normlab.numerics import Arithmetic, Datapath, Mean, Root, arithmetic, datapaths

NARROW = "bf16"
STAGES: dict[str, dict[str, Any]] = {
    "input": {"input": NARROW},
    "square": {"square": NARROW},
    "sum": {"sum": f"{NARROW}:lanes16"},
    "mean": {"mean": Mean(format=NARROW)},
    "eps": {"eps": NARROW},
    "root": {"root": Root("sqrt", NARROW)},
    "product": {"product": NARROW},
    "weight": {"weight": NARROW},
    "output": {"output": NARROW},
}
"""One stage narrowed at a time; the others are float32."""


@partial(jax.jit, static_argnums=(0, 1))
def through(graphdef: Any, path: Arithmetic, state: Any, x: Any) -> Any:
    """The stream after a block."""
    return nnx.merge(graphdef, state)(x, Context(path))


@partial(jax.jit, static_argnums=(0, 1))
def last(graphdef: Any, path: Arithmetic, state: Any, x: Any, targets: Any) -> Any:
    """NLL of each token, and the logits."""
    model = nnx.merge(graphdef, state)
    logits = model.logits(Context(path).norm(model.norm_final, x))
    return token_nll(logits, targets), logits


@jax.jit
def compared(logits: Any, exact: Any) -> Any:
    """KL of each token, and whether both hold the same to be the likeliest."""
    return kl.kl_divergence(exact, logits), jnp.argmax(logits, -1) == jnp.argmax(exact, -1)


def away(x: Any, exact: Any) -> float:
    """The median over tokens of the relative error of a row."""
    rows = np.linalg.norm(x - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    return float(np.median(rows))


class Passes:
    """A model's blocks and its text, for one column after another."""

    def __init__(self, model: Any, windows: Any):
        self.model, self.windows = model, windows
        kinds: dict[bool, Any] = {}
        self.blocks = []
        for i, block in enumerate(model.blocks):
            graphdef, state = nnx.split(block)
            self.blocks.append((kinds.setdefault(model.config.local(i), graphdef), state))
        ends = nnx.split(model)
        self.graphdef, self.state = ends[0], ends[1]

    def run(self, path: Arithmetic, window: int) -> tuple[list[Any], Any, Any]:
        """The stream after each block, each token's NLL, the logits."""
        x = self.model.embed_tokens(self.windows.inputs[window][None], Context(path))
        streams = []
        for graphdef, state in self.blocks:
            x = through(graphdef, path, state, x)
            streams.append(np.asarray(x[0]))
        nll, logits = last(self.graphdef, path, self.state, x, self.windows.targets[window][None])
        return streams, np.asarray(nll[0]), logits[0]


def measured(passes: Passes, path: Arithmetic, exact: list[Any]) -> dict[str, Any]:
    """What a column costs."""
    windows, found = passes.windows, []
    for i, (streams, nll, logits) in enumerate(exact):
        got, other, others = passes.run(path, i)
        divergence, agrees = jax.device_get(compared(others, logits))
        scored = windows.scored[i]
        layers = [away(*pair) for pair in zip(got, streams, strict=True)]
        found.append(
            (other[scored], nll[scored], divergence[scored], agrees[scored], np.array(layers))
        )
    other, nll, divergence, agrees = (np.concatenate([f[j] for f in found]) for j in range(4))
    perplexity, reference = math.exp(np.mean(np.float64(other))), math.exp(np.mean(np.float64(nll)))
    delta = np.float64(other) - np.float64(nll)
    return {
        "perplexity": perplexity,
        "delta": perplexity - reference,
        "delta_stderr": perplexity * float(np.std(delta, ddof=1) / math.sqrt(len(delta))),
        "top1_agreement": float(np.mean(agrees)),
        "kl_mean": float(np.mean(divergence)),
        "error_by_block": [float(e) for e in np.mean([f[4] for f in found], axis=0)],
    }


def columns() -> dict[str, Arithmetic]:
    """Every preset, and one stage narrowed at a time."""
    given: dict[str, Arithmetic] = {
        name: datapaths[name] for name in datapaths if datapaths[name].variance is None
    }  # those of a norm that centres have n/a here
    cut = datapaths["iron-bf16-before-139"]
    nearest = dict.fromkeys(("product", "weight", "output"), NARROW)
    given["before 139, to nearest"] = dataclasses.replace(cut, root=Root("sqrt", NARROW), **nearest)
    given["139, cut off"] = dataclasses.replace(datapaths["iron-bf16"], output=cut.output)
    base = {"sum": "fp32:lanes16", "root": Root("sqrt")}
    narrow = {f"{NARROW} {name}": Datapath(**(base | said)) for name, said in STAGES.items()}
    return {"fp32:lanes16": arithmetic("fp32:lanes16")} | given | narrow


def main() -> None:
    """Measure column by column, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a pretrained model's name")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(columns()), choices=list(columns()))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config = EvaluateConfig(pretrained=asked.model, max_windows=asked.windows)
    evaluator = Evaluator(config, targets(config)[0], Texts())
    passes = Passes(evaluator.lm.model, evaluator.windows)
    exact = [passes.run(arithmetic("fp32"), i) for i in range(asked.windows)]
    nll = np.concatenate(
        [e[1][s] for e, s in zip(exact, evaluator.windows.scored, strict=True)], dtype=np.float64
    )
    tokens = int(evaluator.windows.counts.sum())
    result: dict[str, Any] = {"model": asked.model, "windows": asked.windows, "tokens": tokens}
    result |= {"window": evaluator.text.window, "fp32": math.exp(np.mean(nll)), "columns": {}}
    for name in asked.only:
        result["columns"][name] = measured(passes, columns()[name], exact)
        print(name, {k: v for k, v in result["columns"][name].items() if k != "error_by_block"})
        keep(result, asked.out)


if __name__ == "__main__":
    main()
