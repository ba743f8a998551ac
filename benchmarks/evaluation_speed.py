"""Tokens per second of an evaluation: normlab beside transformers on PyTorch, eager and compiled.

    pip install -e '.[torch]'
    python benchmarks/evaluation_speed.py --out benchmarks/results/evaluation_speed.json

SmolLM2-135M's shape with random weights, float32 on all sides, the NLL of each next token on the
same windows. Every variant stays loaded and they take turns; a ratio is the median over rounds of
(normlab's rate / the other's) within one round, so that a busy machine slows both. normlab's loop
is `normlab.evaluation.perplexity.score`, counting of rows out of range and all. "products" are the
forward pass's matrix products alone, "compared" what `compare=true` does with two columns.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from outcome import keep
from turns import in_turns

from normlab.config import build
from normlab.evaluation.perplexity import Scaled, score_columns
from normlab.evaluation.protocols import Windows
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormConfig
from normlab.numerics import arithmetic

SHAPE = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "hidden": 1536}
VOCABULARY, LENGTH = 49_152, 2048


def windows(batch: int, length: int, vocabulary: int = VOCABULARY) -> Windows:
    """Random tokens, all but each window's first one scored."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1), dtype=np.int32)
    lengths = np.full(batch, length, np.int64)
    return Windows(
        inputs=ids[:, :-1], targets=ids[:, 1:], scored=np.ones((batch, length), bool),
        lengths=lengths, words=lengths, bytes=lengths,
    )  # fmt: skip


def decoder() -> Transformer:
    """The model, by normlab."""
    config = build(ModelConfig, SHAPE | {"max_length": LENGTH, "tied": True})
    norm = build(NormConfig, {"type": "rmsnorm"})
    return Transformer(config, norm, PlacementConfig("pre"), VOCABULARY)


def ours(model: Transformer, text: Windows, *precisions: str) -> Callable[[], float]:
    """One evaluation by normlab, the columns beside the first one; the mean NLL of the last."""
    columns = [Scaled(arithmetic(precision)) for precision in precisions]

    def run() -> float:
        scores = score_columns(model, text, columns)[-1]
        return scores.sum_nll / int(scores.counts.sum())

    return run


def products(text: Windows, batch: int) -> Callable[[], None]:
    """X W of each map, and each head's q kᵀ and p v."""
    rng, (count, length) = np.random.default_rng(0), text.inputs.shape
    d, hidden, heads = SHAPE["width"], SHAPE["hidden"], SHAPE["heads"]
    size = d // heads
    narrow = SHAPE["kv_heads"] * size

    def made(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, np.float32))

    block = [(d, d), (d, narrow), (d, narrow), (d, d), (d, hidden), (d, hidden), (hidden, d)]
    maps = [made(*sizes) for _ in range(SHAPE["layers"]) for sizes in block]
    maps.append(made(d, VOCABULARY))
    rows = {n: made(batch * length, n) for n in (d, hidden)}
    of_heads = [made(batch, heads, length, n) for n in (size, length)]

    @jax.jit
    def one(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    @jax.jit
    def attention(q: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        return q @ q.swapaxes(2, 3), p @ q

    def run() -> None:
        for _ in range(count // batch):
            for w in maps:
                jax.block_until_ready(one(rows[len(w)], w))
            for _ in range(SHAPE["layers"]):
                jax.block_until_ready(attention(*of_heads))

    return run


def theirs(text: Windows, batch: int, compiled: bool) -> Callable[[], float]:
    """The same by transformers, in batches; the mean NLL of all tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=SHAPE["width"], intermediate_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"], max_position_embeddings=LENGTH,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config).to(device, torch.float32).eval()

    def nll(inputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    call = torch.compile(nll) if compiled else nll
    inputs = torch.as_tensor(text.inputs, dtype=torch.long, device=device).split(batch)
    targets = torch.as_tensor(text.targets, dtype=torch.long, device=device).split(batch)

    def run() -> float:
        with torch.inference_mode():
            return statistics.mean(float(call(*both)) for both in zip(inputs, targets, strict=True))

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="of transformers; normlab has its own")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    text, model = windows(asked.windows, asked.length), decoder()
    seconds = in_turns(
        {
            "normlab fp32": ours(model, text, "fp32"),
            "normlab fp16:pairwise": ours(model, text, "fp16:pairwise"),
            "normlab both, compared": ours(model, text, "fp32", "fp16:pairwise"),
            "products": products(text, asked.batch),
            "transformers eager": theirs(text, asked.batch, compiled=False),
            "transformers compiled": theirs(text, asked.batch, compiled=True),
        },
        asked.rounds,
    )
    tokens, told = asked.windows * asked.length, ("windows", "batch", "length", "rounds")
    first, second, both, *_ = (np.array(taken) for taken in seconds.values())
    result = {
        "shape": SHAPE | {name: getattr(asked, name) for name in told},
        "tokens_per_second": {k: tokens / statistics.median(v) for k, v in seconds.items()},
        "ratio_of_normlab_fp32": {k: float(np.median(v / first)) for k, v in seconds.items()},
        "compared_over_columns_alone": float(np.median(both / (first + second))),
    }
    keep(result, asked.out)


if __name__ == "__main__":
    main()
