"""Whether a pretrained model fits into memory: asked before anything of it is loaded."""

import math
from pathlib import Path

import jax
from flax import nnx

from normlab.config import require
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.perplexity import most_windows
from normlab.model import Transformer
from normlab.model.attention import QUERIES

FLOAT = 4
"""Bytes of a float32, in which weights and rows are held."""


def check_fits(name: str, model: Transformer, config: EvaluateConfig, window: int) -> None:
    """Raise `ValueError` for what needs more memory than is free; the message says what fits.

    Args:
        name: as it was asked for.
        model: shapes for weights.
        config: what was asked.
        window: L.
    """
    free = available()
    batch = config.batch or most_windows(window, model.vocab_size)
    asked = needed(model, batch, window, config.stream)
    if free is None or asked <= free:
        return
    others = [(batch, window, True), (1, window, True), (1, max(2, window // 4), True)]
    fitting = [one for one in others if needed(model, *one) <= free]
    b, length, stream = (fitting or others)[0 if fitting else -1]
    least = f"stream=true batch={b} window={length}", _gb(needed(model, b, length, stream))
    said = "expected {} ({})" if fitting else "even {} needs {}"
    require(
        False,
        f"pretrained={name} needs {_gb(asked)} with {batch} windows of {window} tokens in a batch, "
        f"{_gb(free)} are free; " + said.format(*least),
    )


def needed(model: Transformer, batch: int, window: int, stream: bool) -> int:
    """Bytes, about: weights, one tensor on its way, and what a batch makes of logits and rows."""
    c, tokens = model.config, batch * window
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))]
    weights = sum(sizes) + max(sizes)
    if stream:  # the block that computes and the next one
        of_blocks = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model.blocks)))
        weights += -of_blocks + 2 * of_blocks // c.layers
    rows = tokens * (3 * model.vocab_size + 4 * c.hidden_size + 8 * c.width)
    scores = 3 * batch * c.heads * min(QUERIES, window) * window
    return FLOAT * (weights + rows + scores)


def available() -> int | None:
    """Free bytes of the device, the host's where that is the device; None where nobody tells."""
    if stats := jax.local_devices()[0].memory_stats():
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        told = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return None
    free = next((line for line in told.splitlines() if line.startswith("MemAvailable:")), None)
    return None if free is None else 1024 * int(free.split()[1])


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
