"""What a model needs, and what is said of one that needs more than is free."""

import jax
import pytest
from flax import nnx

from normlab.evaluation import memory
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.memory import check_fits, needed
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms

SHAPE = ModelConfig(layers=8, width=256, heads=4, hidden=1024, max_length=512)


@pytest.fixture(scope="module")
def model():
    """Shapes for weights: 8.5 million, of which blocks have 8.4."""
    norm = norms["rmsnorm"].Config()
    return nnx.eval_shape(lambda: Transformer(SHAPE, norm, PlacementConfig("pre"), 500))


def asked(**fields):
    return EvaluateConfig(pretrained="hf:DIR", **fields)


def test_what_is_needed_is_weights_and_a_batch(model):
    weights = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert 4 * weights < needed(model, 1, 2, False) < 4.3 * weights
    assert 4 * weights / 4 < needed(model, 1, 2, True) < 4 * weights / 2.5
    assert needed(model, 9, 512, True) - needed(model, 1, 512, True) > 8 * 512 * 4 * 500


def test_what_is_larger_than_memory_is_refused_with_what_fits(model, monkeypatch):
    def free(size):
        monkeypatch.setattr(memory, "available", lambda: size)

    free(None)  # nobody tells
    check_fits("x", model, asked(), 512)
    free(needed(model, 4, 512, False))
    check_fits("x", model, asked(batch=4), 512)
    with pytest.raises(
        ValueError, match=r"x needs .* 5 windows of 512 .*expected stream=true batc"
    ):
        check_fits("x", model, asked(batch=5), 512)
    free(needed(model, 1, 512, True))
    check_fits("x", model, asked(batch=1, stream=True), 512)
    with pytest.raises(ValueError, match=r"expected stream=true batch=1 window=512 \("):
        check_fits("x", model, asked(batch=4, stream=True), 512)
    free(needed(model, 1, 128, True))
    with pytest.raises(ValueError, match=r"expected stream=true batch=1 window=128 \("):
        check_fits("x", model, asked(batch=1, stream=True), 512)
    free(1000)
    with pytest.raises(ValueError, match=r"even stream=true batch=1 window=128 needs 0.0 GB"):
        check_fits("x", model, asked(stream=True), 512)


def test_this_machine_tells_what_is_free():
    free = memory.available()
    assert free is None or free > 2**20
