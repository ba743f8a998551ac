"""The formulas of SLaNC's published code, and where they are not the paper's."""

import numpy as np
import pytest

from normlab.scaling import scales
from tests.conftest import tiny_model
from tests.support.scaling_models import GATED, PLAIN, frobenius, kernel, weight


def test_a_gated_mlp_has_no_identity():
    model = tiny_model(placement="pre", **GATED)
    part = model.blocks[0].mlp
    g, branch = weight(part.norm_in)[:, None], part.branch
    spectral = np.linalg.norm(g * kernel(branch.gate), 2)
    expected = spectral * frobenius(g * kernel(branch.up) @ kernel(branch.down))
    found = scales(model, "slanc_code")["blocks.1.attention.norm_in"]
    assert found == pytest.approx(expected, rel=2e-3)


def test_a_plain_mlp_has_spectral_norms_and_a_mean_gain():
    model = tiny_model(placement="post", **PLAIN)
    branch = model.blocks[0].mlp.branch
    expected = np.mean(weight(model.blocks[0].attention.post_norm))
    expected *= np.linalg.norm(kernel(branch.gate), 2) * np.linalg.norm(kernel(branch.down), 2)
    found = scales(model, "slanc_code")["blocks.0.mlp.post_norm"]
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_tiles_the_value_heads(kv_heads):
    """With as many key/value heads as queries, or one, tiling pairs them rightly."""
    model = tiny_model(heads=4, kv_heads=kv_heads)
    part = model.blocks[0].attention
    wrong = np.tile(kernel(part.branch.value), (1, 4 // kv_heads))
    g, one = weight(part.norm_in)[:, None], np.eye(32)
    expected = frobenius(g * (wrong @ kernel(part.branch.out) + one))
    site = "blocks.0.mlp.norm_in"
    assert scales(model, "slanc_code")[site] == pytest.approx(expected, rel=1e-4)


def test_the_first_norm_and_queries_and_keys_have_one():
    found = scales(tiny_model(placement="peri", placement_fields={"norm_qk": True}), "slanc_code")
    assert found["blocks.0.attention.norm_in"] == 1
    assert found["blocks.1.attention.key.norm_qk"] == 1


def test_the_stream_is_not_seen():
    """The embedding may grow as it likes."""
    model = tiny_model(placement="pre")
    before = scales(model, "slanc_code")
    model.embed.embedding[...] *= 100
    assert scales(model, "slanc_code") == before
    site = "blocks.0.attention.norm_in"
    assert scales(model, "slanc")[site] == pytest.approx(100 * scales(tiny_model(), "slanc")[site])
