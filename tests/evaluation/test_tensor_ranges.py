"""The range report: each tensor's size, the first that leaves the range, and the cure."""

import jax.numpy as jnp
import numpy as np
import pytest

from normlab.data.tokenizer import WordTokenizer
from normlab.evaluation.perplexity import score
from normlab.evaluation.tensor_ranges import rewritten, tensor_ranges
from normlab.model import Context
from normlab.model.language_model import LanguageModel
from normlab.results.range_report import report
from normlab.transforms.rescale import Rescale
from tests.conftest import VOCAB, tiny_model
from tests.support.called_model import Called
from tests.support.scored_windows import windows


def language_model(**fields):
    words = WordTokenizer(["<unk>", "<eos>", *(f"w{i}" for i in range(VOCAB - 2))])
    return LanguageModel("tiny", tiny_model(**fields), words)


def by_name(found):
    return {t.name: t for t in found.tensors}


@pytest.mark.system
def test_sizes_are_those_of_the_tensors_and_all_fits():
    lm, read = language_model(), windows()
    found = tensor_ranges(lm, read)
    context = Context(capture=True)
    lm.model(read.inputs[:1], context)
    seen = by_name(tensor_ranges(lm, read[:1]))
    stream = np.abs(context.streams[-1][0, : read.lengths[0]])
    last = seen["blocks.1.mlp.stream"]
    assert last.largest == pytest.approx(stream.max(), rel=1e-6)
    assert last.position == int(np.argmax(stream.max(-1)))
    assert last.token == lm.tokenizer.decode([int(read.inputs[0, last.position])])
    entering = np.float64(context.inputs["norm_final"][0, : read.lengths[0]])
    assert seen["norm_final.sum"].largest == pytest.approx((entering**2).sum(-1).max(), rel=1e-6)
    assert last.headroom == pytest.approx(np.log2(65504 / stream.max()), abs=1e-5)
    assert next(iter(seen)) == "embed"
    assert list(seen)[-1] == "logits"
    assert "every tensor fits fp16" in report(found).splitlines()[0]


@pytest.mark.system
def test_of_a_model_that_is_called_sizes_are_the_same_and_sums_are_cured():
    """Its weights can't be rescaled, and it isn't run in the format."""
    lm, read = language_model(), windows()
    far = LanguageModel("far", Rescale(2.0**7)(lm.model), lm.tokenizer)
    called = LanguageModel("called", Called(far.model, padding=-1), lm.tokenizer)
    ours, traced = tensor_ranges(called, read), tensor_ranges(far, read)
    sizes = by_name(ours)
    assert sizes.keys() == by_name(traced).keys()
    for t in traced.tensors:
        assert sizes[t.name].largest == pytest.approx(t.largest, rel=1e-5), t.name
        assert sizes[t.name].window == t.window
    assert traced.out(sums=True)
    assert (ours.rescale, ours.rule, ours.left, ours.cured) == (None, "random_tokens", [], None)
    assert traced.cured is not None


@pytest.mark.system
def test_a_stream_that_leaves_fp16_is_found_and_cured_by_the_least_rescaling():
    lm = language_model()
    far = Rescale(2.0**20)(lm.model)
    found = tensor_ranges(LanguageModel("far", far, lm.tokenizer), windows())
    stored = found.out(sums=False)
    sizes = by_name(tensor_ranges(lm, windows()))
    for t in found.tensors:
        if t.name.endswith((".stream", ".out")) or t.name == "embed":
            assert t.largest == sizes[t.name].largest * 2.0**20, t.name
    assert stored[0].name == "embed"
    assert stored[0].rows == 1
    least = max(t.largest for t in stored) / 65504
    assert found.rescale is not None
    assert found.rescale * least <= 1 < 2 * found.rescale * least
    assert found.left == []
    assert found.perplexity == pytest.approx(score(far, windows(), "fp32").perplexity, rel=1e-5)
    assert found.cured == pytest.approx(found.perplexity, rel=1e-2)
    assert found.cured != found.perplexity  # it was run in half precision
    assert f"transform=rescale:{found.rescale!r}" in report(found)


@pytest.mark.system
def test_what_no_cure_reaches_is_named():
    lm = language_model()
    mlp = lm.model.blocks[1].mlp.branch
    mlp.up.kernel[...] *= jnp.float32(1e8)
    mlp.down.kernel[...] *= jnp.float32(1e-8)
    found = tensor_ranges(lm, windows())
    assert [t.name for t in found.out(sums=False)] == ["blocks.1.mlp.up", "blocks.1.mlp.hidden"]
    assert found.left == ["blocks.1.mlp.up", "blocks.1.mlp.hidden"]
    assert found.cured is None
    assert "Out of range still: blocks.1.mlp.up" in report(found)


def test_a_float32_overflow_is_no_number_and_no_cure():
    lm = language_model()
    lm.model.embed.embedding[...] *= jnp.float32(1e38) * 1e3
    found = tensor_ranges(lm, windows())
    assert found.out(sums=False)[0].largest == np.inf
    assert found.rescale is None
    assert found.left


@pytest.mark.system
def test_rescale_auto_is_the_largest_power_of_two_that_leaves_room():
    """Found where it stands in the chain; left out where the stream has room already."""
    lm, read = language_model(), windows()
    assert rewritten(lm, read, "rescale:auto+fold")[0] == "fold"
    assert rewritten(lm, read, "rescale:auto")[0] == "none"
    chain, model = rewritten(lm, read, "rescale:1048576+rescale:auto+fold")
    first, found, last = chain.split("+")
    assert (first, last) == ("rescale:1048576", "fold")
    factor = float(found.removeprefix("rescale:"))
    assert np.log2(factor) % 1 == 0
    seen = tensor_ranges(LanguageModel("far", model, lm.tokenizer), read)
    stream = [t for t in seen.tensors if t.name.endswith((".stream", ".out", "embed"))]
    assert 1 <= min(t.headroom for t in stream) - 1 < 2  # a factor of 4 to 8
