"""Any PyTorch model with our norms in it: the same in fp32, another in FP16, whole afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import Norm, all_norms
from normlab.registry import UnknownNameError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from normlab import pretrained  # noqa: E402
from normlab.scaling import scales as native_scales  # noqa: E402
from normlab.torch_bridge import replaced, scales  # noqa: E402
from tests.support.family_golden import TOKENS, golden, write  # noqa: E402
from tests.support.torch_models import MODELS, other  # noqa: E402

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]


@pytest.mark.parametrize("kind", MODELS)
def test_every_norm_of_any_model_is_ours_while_the_block_lasts(kind):
    model, run = other(kind)
    before = run()
    with replaced(model) as exact:
        same = run()
    with replaced(model, "fp16:sequential") as seen:
        rounded = run()
    after = run()
    assert len(exact.norms) == len(exact.observed) == MODELS[kind][2]
    assert exact.left == {}
    assert 0 < (same - before).abs().max() < 1e-5
    assert (rounded - before).abs().max() > 1e-4
    assert torch.equal(before, after)
    assert all(int(counts.rows) > 0 for counts in seen.observed.values())


def test_scales_from_hooks_end_what_overflows():
    model, run = other("ViTModel")
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter *= 1e3
    exact = run()
    with replaced(model, "fp16") as lost:
        run()
    assert sum(int(counts.overflowed) for counts in lost.observed.values()) > 0
    for rule in ("calibrated", "random_tokens", "row_max"):
        given = scales(model, rule, run)
        assert given.keys() == lost.norms.keys()
        with replaced(model, "fp16", given) as seen:
            found = run()
        assert sum(int(counts.overflowed) for counts in seen.observed.values()) == 0
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()


PRECISIONS = (
    "fp32", "fp32:sequential", "fp16:pairwise", "fp16:sequential", "fp16:lanes8", "bf16:pairwise",
    "hf-llama-fp16",
)  # fmt: skip


class Kept(Context):
    """A pass that keeps what its norms give, too."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.outputs = {}

    def norm(self, norm: Norm | None, x):
        y = super().norm(norm, x)
        if norm is not None:
            self.outputs[norm.site.name] = y
        return y


def module_of(norm: Norm):
    """PyTorch's own module of the same norm."""
    weight, bias = (None if p is None else np.array(p) for p in (norm.gamma(), norm.beta()))
    if norm.config.center:
        made = torch.nn.LayerNorm(norm.width, norm.config.eps, weight is not None)
    else:
        made = torch.nn.RMSNorm(norm.width, norm.config.eps, weight is not None)
    for parameter, values in ((made.weight, weight), (getattr(made, "bias", None), bias)):
        if parameter is not None:
            parameter.data = torch.from_numpy(values)
    return made.eval()


@pytest.mark.parametrize(
    ("case", "rule"),
    [("llama", None), ("llama", "random_tokens"), ("gpt2", "row_max"), ("olmo", "calibrated")],
)
def test_equal_rows_get_the_bits_of_the_native_model(case, rule, tmp_path):
    """Those of a whole pass in one compiled program, norm by norm."""
    kept = golden()[case]
    model = pretrained.load(f"hf:{write(tmp_path / 'm', kept['config'], kept['shapes'])}").model
    given = native_scales(model, rule, calibration=TOKENS) if rule else {}
    graphdef, params = nnx.split(model)

    def run(precision, params, given):
        context = Kept(precision, given, capture=True)
        nnx.merge(graphdef, params)(jnp.asarray(TOKENS), context)
        return context.inputs, context.outputs

    for precision in PRECISIONS:
        inputs, outputs = jax.jit(run, static_argnums=0)(precision, params, given)
        for norm in all_norms(model):
            name, module = norm.site.name, module_of(norm)
            own = {"": given[name]} if name in given else {}
            with replaced(module, precision, own):
                found = module(torch.from_numpy(np.array(inputs[name])))
            assert found.numpy().tobytes() == np.asarray(outputs[name]).tobytes(), (name, precision)


def test_halves_leave_as_halves_and_doubles_are_refused():
    module = torch.nn.LayerNorm(16).eval()
    x = torch.randn(3, 16)
    with replaced(module):
        assert module(x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(module(input=x), module(x))
        with pytest.raises(ValueError, match=r"rows of torch\.float64: expected float32"):
            module(x.double())


def test_a_model_in_training_and_a_scale_of_no_norm_are_refused():
    module = torch.nn.Sequential(torch.nn.LayerNorm(16))
    with pytest.raises(ValueError, match=r"expected model\.eval\(\)"), replaced(module):
        pass
    with pytest.raises(ValueError, match=r"expected model\.eval\(\)"):
        scales(module, "row_max", lambda: None)
    given = replaced(module.eval(), scales={"norm": 2.0})
    with pytest.raises(UnknownNameError, match="unknown norm 'norm'.*Known: 0"), given:
        pass


def test_another_library_s_own_forward_is_back_afterwards():
    module = torch.nn.LayerNorm(16).eval()
    module.forward = own = module.forward
    with replaced(module):
        assert module.forward is not own
    assert module.forward is own
