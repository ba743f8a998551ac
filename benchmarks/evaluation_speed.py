"""Tokens per second of an evaluation: normlab beside transformers on PyTorch, eager and compiled.

    pip install -e '.[torch]'
    python benchmarks/evaluation_speed.py --out benchmarks/results/evaluation_speed.json

SmolLM2-135M's shape with random weights, float32 on all sides, the NLL of each next token on the
same windows. Every variant stays loaded and they take turns; a ratio is the median over rounds of
(normlab's rate / the peer's) within one round, so that a busy machine slows both. normlab's loop is
`normlab.evaluation.perplexity.score`, counting of rows out of range and all.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from outcome import keep
from turns import in_turns

from normlab.config import build
from normlab.evaluation.perplexity import score
from normlab.evaluation.protocols import Windows
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormConfig
from normlab.numerics import Precision

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


def ours(text: Windows, precision: str) -> Callable[[], float]:
    """One evaluation by normlab; the mean NLL."""
    config = build(ModelConfig, SHAPE | {"max_length": LENGTH, "tied": True})
    norm = build(NormConfig, {"type": "rmsnorm"})
    model = Transformer(config, norm, PlacementConfig("pre"), VOCABULARY)

    def run() -> float:
        scores = score(model, text, Precision.parse(precision), batch=len(text))
        return scores.sum_nll / int(scores.counts.sum())

    return run


def theirs(text: Windows, compiled: bool) -> Callable[[], float]:
    """The same by transformers."""
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
    inputs = torch.as_tensor(text.inputs, dtype=torch.long, device=device)
    targets = torch.as_tensor(text.targets, dtype=torch.long, device=device)

    def run() -> float:
        with torch.inference_mode():
            return float(call(inputs, targets))

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    text = windows(asked.batch, asked.length)
    seconds = in_turns(
        {
            "normlab fp32": ours(text, "fp32"),
            "normlab fp16:pairwise": ours(text, "fp16:pairwise"),
            "transformers eager": theirs(text, compiled=False),
            "transformers compiled": theirs(text, compiled=True),
        },
        asked.rounds,
    )
    tokens = asked.batch * asked.length
    result = {
        "shape": SHAPE | {"batch": asked.batch, "length": asked.length, "rounds": asked.rounds},
        "tokens_per_second": {k: tokens / statistics.median(v) for k, v in seconds.items()},
        "ratio_of_normlab_fp32": {
            k: statistics.median(b / a for a, b in zip(seconds["normlab fp32"], v, strict=True))
            for k, v in seconds.items()
        },
    }
    keep(result, asked.out)


if __name__ == "__main__":
    main()
