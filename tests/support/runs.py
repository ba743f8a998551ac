"""A run that ends after a few seconds."""

from normlab.config import build
from tests.conftest import TINY
from train.config import TrainConfig


def tiny_config(runs, **fields):
    """A training config on the embedded text that ends after a few seconds."""
    values = {
        "model": TINY,
        "data": {"corpus": "embedded", "vocab_size": 300},
        "optimizer": {"lr": 1e-2, "warmup": 2},
        "steps": 12,
        "batch": 4,
        "window": 32,
        "eval_every": 4,
        "eval_windows": 4,
        "log_every": 1,
        "runs": str(runs),
    }
    return build(TrainConfig, values | fields)
