"""What all tests share: no network, caches of their own, and runs that take seconds."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NORMLAB_CACHE", os.path.join(os.path.dirname(__file__), ".cache"))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, all workers and the commands they start need not compile again:
    # not even an operation by itself, of which there are hundreds.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="normlab-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms
from train.config import TrainConfig

TINY = {"layers": 2, "width": 32, "heads": 2, "max_length": 64}


def tiny_model(norm="rmsnorm", placement="pre", vocab_size=97, seed=0, norm_fields=None, **fields):
    """A random transformer that runs in milliseconds once compiled."""
    return Transformer(
        ModelConfig(**(TINY | fields)),
        norms[norm].Config(**(norm_fields or {})),
        PlacementConfig(type=placement),
        vocab_size,
        seed,
    )


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


def same_trees(a, b):
    """Whether two pytrees hold the same bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.fixture
def tokens():
    """Some token ids, [2, 16]."""
    return np.random.default_rng(0).integers(0, 97, (2, 16)).astype(np.int32)
