"""Which modules are norms: by class, and by numbers."""

import numpy as np
import pytest

from normlab.config import to_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch import nn  # noqa: E402
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm  # noqa: E402
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated  # noqa: E402
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

from normlab.torch_bridge import find, replaced, scales  # noqa: E402

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]

KINDS = {
    "layernorm": (nn.LayerNorm(24, eps=1e-3), "layernorm", {"eps": 1e-3, "bias": True}),
    "without a bias": (nn.LayerNorm(24, bias=False), "layernorm", {"bias": False}),
    "bare": (nn.LayerNorm(24, elementwise_affine=False), "layernorm", {"use_weight": False}),
    "rmsnorm": (nn.RMSNorm(24, eps=1e-4), "rmsnorm", {"eps": 1e-4, "one_plus": False}),
    "rmsnorm, no ε said": (nn.RMSNorm(24), "rmsnorm", {"eps": float(np.finfo("f4").eps)}),
    "gemma3": (Gemma3RMSNorm(24, eps=1e-6), "rmsnorm", {"eps": 1e-6, "one_plus": True}),
    "t5": (T5LayerNorm(24, eps=1e-6), "rmsnorm", {"eps": 1e-6, "bias": False}),
    "olmo": (OlmoLayerNorm(24), "layernorm", {"eps": 1e-5, "use_weight": False}),
}


class OverNorm(nn.Module):
    """x / (RMS(x) + ε), as in the code of RMSNorm's paper."""

    def __init__(self, power=2):
        super().__init__()
        self.weight, self.eps, self.power = nn.Parameter(torch.rand(24)), 1e-3, power

    def forward(self, x):
        size = x.abs().pow(self.power).mean(-1, keepdim=True) ** (1 / self.power)
        return x / (size + self.eps) * self.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_found_with_its_settings(kind):
    module, norm, fields = KINDS[kind]
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(24)
    norms, left = find(nn.Sequential(nn.Linear(24, 24), module))
    assert left == {}
    config = to_dict(norms["1"].config)
    assert config["type"] == norm
    assert {k: config[k] for k in fields} == fields


class Bare(nn.Module):
    """An RMSNorm of rows of any width, and a weight that it doesn't use."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(24)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class QKNorm(Bare):
    """The same without one."""

    def __init__(self):
        super().__init__()
        self.weight = None


class BareRMSNorm(Bare):
    """With it."""


@pytest.mark.parametrize("kind", [QKNorm, BareRMSNorm])
def test_a_norm_that_no_weight_bounds_takes_rows_of_any_width(kind):
    module, x = kind().eval(), torch.randn(5, 6)
    with replaced(module) as seen:
        torch.testing.assert_close(module(x), Bare()(x), rtol=1e-6, atol=1e-6)
    assert seen.norms[""].width == 6
    given = scales(module, "sqrt_d", lambda: module(x))
    assert float(given[""]) == pytest.approx(6**0.5)


def test_where_eps_stands_is_decided_by_numbers():
    assert find(OverNorm()).norms[""].config.eps_form == "added"


def test_what_computes_something_else_is_left_alone_and_named():
    """By its numbers, its arguments, its shape; and its statistics are those of before."""
    gated, running = MambaRMSNormGated(24, 24), nn.BatchNorm1d(24)
    modules = {"cubes": OverNorm(3), "gated": gated, "grid": nn.LayerNorm((3, 24)), "bn": running}
    norms, left = find(nn.ModuleDict(modules | {"own": nn.LayerNorm(24)}))
    assert list(norms) == ["own"]
    assert list(left) == ["cubes", "gated", "grid"]  # a BatchNorm is none of them
    assert "OverNorm: the nearest, rmsnorm, is 0." in left["cubes"]
    assert "MambaRMSNormGated: its forward takes hidden_states, gate" in left["gated"]
    assert "LayerNorm: the nearest, layernorm, is " in left["grid"]
    assert int(running.num_batches_tracked) == 0
