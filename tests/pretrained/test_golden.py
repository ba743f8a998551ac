"""Each family's log-probabilities against those of `transformers` in float64, kept in a file."""

import jax
import numpy as np
import pytest
from flax import nnx

from normlab import pretrained
from normlab.config import to_dict
from normlab.pretrained.families import families
from normlab.scaling import scales
from normlab.scaling.bound import norm_bounds
from normlab.transforms import DoesNotApply, apply
from tests.conftest import forward, same_trees
from tests.support.family_golden import CASES, STEP, TOKENS, golden, tensors, write
from tests.support.scaling_models import sizes
from tests.support.small_checkpoints import head_size, log_probs, write_gguf

GOLDEN = golden()
IN_GGUF = {
    "gemma": "gemma",
    "olmo": "olmo",
    "phi": "phi2",
    "phi3": "phi3",
    "phi3-partial": "phi3",
    "granite": "granite",
    "gpt_neox": "gptneox",
    "gpt_neox-in-turn": "gptneox",
}
"""Case → architecture; the other families are read from both formats in test_load.py."""


def test_every_family_has_a_case():
    assert GOLDEN.keys() == CASES.keys()
    assert {case["config"]["model_type"] for case in GOLDEN.values()} == {*families} - {"bert"}


@pytest.mark.system
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(case, tmp_path):
    kept = GOLDEN[case]
    folder = write(tmp_path / "m", kept["config"], kept["shapes"])
    found = np.float64(log_probs(pretrained.load(f"hf:{folder}"), TOKENS))
    expected = np.array(kept["log_probs"])
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found[..., ::STEP], expected, rtol=0, atol=1e-4)


@pytest.mark.system
@pytest.mark.parametrize("case", CASES)
def test_rules_and_transforms_know_what_it_has(case, tmp_path):
    """Every rule has a scale for every site; no row exceeds its bound; a rewrite is exact."""
    kept = GOLDEN[case]
    model = pretrained.load(f"hf:{write(tmp_path / 'm', kept['config'], kept['shapes'])}").model
    found = sizes(model, TOKENS)
    for rule in ("slanc", "moments", "bound"):
        given = scales(model, rule)
        assert given.keys() == found.keys()
        assert all(np.all((s > 0) & np.isfinite(s)) for s in map(np.asarray, given.values())), rule
    for site, bound in norm_bounds(model).items():
        assert np.max(found[site] / np.reshape(bound, -1)) <= 1 + 1e-5, site
    before = forward(model, TOKENS)
    rewritten = [t for t in ("rescale:0.25", "fold", "recentre") if applies(model, t)]
    assert "rescale:0.25" in rewritten or model.placement.type == "post"
    for transform in rewritten:
        after = forward(apply(model, transform), TOKENS)
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("case", sorted(IN_GGUF))
def test_a_gguf_file_holds_the_same_model(case, tmp_path):
    """Written by llama.cpp's rules of conversion; a float32 there rounds what a config says."""
    kept, arch = GOLDEN[case], IN_GGUF[case]
    config, weights = kept["config"], tensors(kept["config"], kept["shapes"])
    if (share := config.get("rope_parameters", {}).get("partial_rotary_factor", 1.0)) != 1.0:
        turned = {f"{arch}.rope.dimension_count": int(share * head_size(config))}
    else:
        turned = {}
    if case == "olmo":
        turned["olmo.attention.layer_norm_epsilon"] = 1e-5
    file = pretrained.describe(write_gguf(tmp_path / "m.gguf", arch, config, weights, **turned))
    folder = pretrained.describe(f"hf:{write(tmp_path / 'm', config, kept['shapes'])}")
    for said, expected in zip(file.configs[:3], folder.configs[:3], strict=True):
        assert numbers(said) == numbers(expected)
    assert file.configs.vocab_size == folder.configs.vocab_size
    ours, theirs = (nnx.state(checkpoint.load().model) for checkpoint in (file, folder))
    assert same_trees(ours, theirs)


def numbers(config):
    """Every field of a config, as text or as a float32."""
    flat = jax.tree_util.tree_flatten_with_path(to_dict(config), is_leaf=lambda x: x is None)[0]
    return {str(k): np.float32(v) if isinstance(v, (int, float)) else v for k, v in flat}


def applies(model, transform):
    try:
        apply(model, transform)
    except DoesNotApply:
        return False
    return True
