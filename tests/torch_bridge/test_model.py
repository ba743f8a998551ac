"""A PyTorch model as scores and rules know it, beside our own of the same checkpoint."""

import jax
import numpy as np
import pytest

from normlab import pretrained
from normlab.model import Context
from tests.conftest import forward
from tests.support.family_golden import CASES, TOKENS, made, write

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from normlab.scaling import scales  # noqa: E402
from normlab.torch_bridge import describe  # noqa: E402

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]


def both(case, folder):
    """(ours, PyTorch's), of a checkpoint as the installed `transformers` writes it."""
    asked = made(*CASES[case])
    write(folder, asked["config"], asked["shapes"])
    return pretrained.load(f"hf:{folder}").model, describe(folder).load().model


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_the_native_model(case, tmp_path):
    ours, theirs = both(case, tmp_path / "m")
    native = np.asarray(jax.nn.log_softmax(forward(ours, TOKENS)))
    found = np.asarray(jax.nn.log_softmax(theirs(TOKENS, Context("fp32"))))
    assert np.std(native) > 0.1
    print(f"{case}: largest |Δ log p| {np.abs(found - native).max():.2e}")
    np.testing.assert_allclose(found, native, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["qwen3", "gemma3_text", "opt"])
def test_scales_are_those_of_the_native_model_head_by_head(case, tmp_path):
    """Heads lie before positions or behind them; OPT's rows have no axis for sequences."""
    ours, theirs = both(case, tmp_path / "m")
    assert len({*theirs._positions.values()}) == (1 if case == "qwen3" else 2)
    for rule in ("random_tokens", "calibrated"):
        native, found = (scales(m, rule, calibration=TOKENS) for m in (ours, theirs))
        for a, b in zip(by_size(native), by_size(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def by_size(given):
    """All scales, whatever their sites are called."""
    return sorted(x for scale in given.values() for x in np.ravel(scale))


def test_ranges_are_of_every_module_and_of_what_enters_a_norm(tmp_path):
    ours, theirs = both("llama", tmp_path / "m")
    context, native = Context(edge=65504.0), Context(capture=True)
    theirs(TOKENS[:1], context)
    ours(TOKENS[:1], native)
    last = np.abs(native.inputs["norm_final"]).max()
    for name in ("model.norm.in", "model.layers.2"):
        assert float(context.stored[name].size.max()) == pytest.approx(last, rel=1e-5)
    square = np.square(np.float64(native.inputs["norm_final"])).sum(-1).max()
    assert float(context.stored["model.norm.sum"].size.max()) == pytest.approx(square, rel=1e-5)
    assert {"lm_head", "model.embed_tokens", "model.layers.0.mlp.act_fn"} <= {*context.stored}
    assert not any(module._forward_hooks for module in theirs._module.modules())
