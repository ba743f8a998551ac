"""SLaNC's formulas against their definition in NumPy, and against rows of real forward passes."""

import numpy as np
import pytest

from normlab.scaling import scales
from tests.conftest import tiny_model
from tests.support.scaling_models import (
    GATED,
    KINDS,
    PLAIN,
    UNEVEN,
    frobenius,
    isotropic,
    kernel,
    random_tokens,
    sizes,
    weight,
)
from tests.support.transformer_reference import Reference


def attention_map(branch):
    """W_V P, head by head: query head h reads key/value head h // (heads / kv)."""
    c, total = branch.config, 0.0
    for h in range(c.heads):
        g, k = h // (c.heads // c.kv), c.head_size
        heads = kernel(branch.value)[:, g * k : (g + 1) * k]
        total = total + heads @ kernel(branch.out)[h * k : (h + 1) * k]
    return total


def mlp_map(branch, gamma):
    """EG, or ‖ΓE‖₂·BG."""
    e, g = kernel(branch.gate), kernel(branch.down)
    if branch.up is None:
        return e @ g
    return np.linalg.norm(gamma[:, None] * e, 2) * kernel(branch.up) @ g


def parts(model):
    """(name, sublayer, map of it and of the weight in front of it) in order."""
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        yield f"blocks.{i}.attention", attention, lambda g, a=attention: attention_map(a.branch)
        yield f"blocks.{i}.mlp", mlp, lambda g, m=mlp: mlp_map(m.branch, g)


def embedding_norm(model):
    tables = [model.embed] + ([model.positions] if model.positions is not None else [])
    squares = [np.mean(np.sum(np.float64(t.embedding[...]) ** 2, 1)) for t in tables]
    return np.sqrt(sum(squares))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_post_norm_is_equations_5_8_and_10(norm, kind):
    model = tiny_model(norm, "post", **KINDS[kind])
    found, d = scales(model, "slanc"), model.config.width
    gamma = np.full(d, embedding_norm(model) / np.sqrt(d))
    for name, part, matrix in parts(model):
        expected = frobenius(gamma[:, None] * (matrix(gamma) + np.eye(d)))
        assert found[f"{name}.post_norm"] == pytest.approx(expected, rel=2e-3)
        gamma = weight(part.post_norm)


@pytest.mark.parametrize("kind", KINDS)
def test_pre_norm_carries_the_stream_along(kind):
    model = tiny_model(placement="pre", **KINDS[kind])
    found, square = scales(model, "slanc"), embedding_norm(model) ** 2
    for name, part, matrix in parts(model):
        assert found[f"{name}.norm_in"] == pytest.approx(np.sqrt(square), rel=2e-3)
        gamma = weight(part.norm_in)
        square += frobenius(gamma[:, None] * matrix(gamma)) ** 2
    assert found["norm_final"] == pytest.approx(np.sqrt(square), rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_peri_norm_sees_raw_branches_and_adds_vectors_of_known_norm(kind):
    model = tiny_model(placement="peri", **KINDS[kind])
    found, square = scales(model, "slanc"), embedding_norm(model) ** 2
    for name, part, matrix in parts(model):
        gamma = weight(part.norm_in)
        raw = frobenius(gamma[:, None] * matrix(gamma))
        assert found[f"{name}.norm_in"] == pytest.approx(np.sqrt(square), rel=2e-3)
        assert found[f"{name}.norm_out"] == pytest.approx(raw, rel=2e-3)
        square += np.sum(weight(part.norm_out) ** 2)
    assert found["norm_final"] == pytest.approx(np.sqrt(square), rel=2e-3)


def test_queries_and_keys_have_a_scale_for_each_head():
    model = tiny_model(placement="pre", placement_fields={"norm_qk": True}, **GATED)
    part = model.blocks[1].attention
    for name, heads in (("query", 4), ("key", 2)):
        mapped = weight(part.norm_in)[:, None] * kernel(getattr(part.branch, name))
        expected = [frobenius(m) for m in np.split(mapped, heads, axis=1)]
        found = scales(model, "slanc")[f"blocks.1.attention.{name}.norm_qk"]
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def attended(model, x):
    """What attention of the second block adds to each row of a text, in float64."""
    return Reference(model).attention("blocks.1.attention.branch", "blocks.1.attention", x, 2)


def test_attention_alone_has_the_predicted_mean_square():
    """E‖uΓ(M + I)‖² = ‖Γ(M + I)‖²_F for isotropic u: Monte Carlo through the formula."""
    model = tiny_model(placement="post", seed=3, spread=UNEVEN, **GATED)
    gamma = weight(model.blocks[0].mlp.post_norm)
    x = (isotropic(20_000, len(gamma)) * gamma)[:, None]  # lengths of 1
    squares = np.sum((x + attended(model, x)) ** 2, axis=(1, 2))
    error = squares.std() / np.sqrt(len(squares))
    found = float(scales(model, "slanc")["blocks.1.attention.post_norm"])
    assert abs(squares.mean() - found**2) < 5 * error
    assert error < 0.02 * found**2


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_post_norm_block_never_exceeds_d(seed):
    """Σ(y/s)² ≤ d: proved for a token that attends to itself, the first of any text."""
    model = tiny_model(placement="post", seed=seed, spread=1.5, **GATED)
    part, gamma = model.blocks[1].attention, weight(model.blocks[0].mlp.post_norm)
    s = float(scales(model, "slanc")["blocks.1.attention.post_norm"])
    u = isotropic(500, len(gamma), seed)
    worst = np.linalg.svd(gamma[:, None] * (attention_map(part.branch) + np.eye(len(gamma))))[0]
    x = (np.concatenate([u, np.sqrt(len(gamma)) * worst.T]) * gamma)[:, None]
    y = x + attended(model, x)
    assert np.max(np.sum((y / s) ** 2, axis=(1, 2))) <= len(gamma) * (1 + 1e-4)


def test_another_token_can_break_that_bound():
    """W_V P = −0.997 I cancels a token's own row and not that of a token before it."""
    model = tiny_model(placement="post", spread=0.0, **(PLAIN | {"bias": False}))
    part, gamma = model.blocks[1].attention, weight(model.blocks[0].mlp.post_norm)
    for linear, factor in (("query", 0), ("key", 0), ("value", 1), ("out", -0.997)):
        kernel = getattr(part.branch, linear).kernel
        kernel[...] = factor * np.eye(*kernel.shape, dtype=np.float32)
    s, d = float(scales(model, "slanc")["blocks.1.attention.post_norm"]), len(gamma)
    u = isotropic(1, d, 0)
    x = np.stack([u, -u], axis=1) * gamma
    first, second = np.sum(((x + attended(model, x)) / s) ** 2, axis=-1)[0]
    assert first <= d < second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["out", "down", "weight"])
def test_scales_follow_the_weights_linearly(kind, what):
    """Γ enters a gated MLP twice, through ‖ΓE‖₂ too."""
    model = tiny_model(placement="peri", **KINDS[kind])
    part = model.blocks[1].attention if what == "out" else model.blocks[1].mlp
    site = f"blocks.1.{'attention' if what == 'out' else 'mlp'}.norm_out"
    before = float(scales(model, "slanc")[site])
    array = part.norm_in.weight if what == "weight" else getattr(part.branch, what).kernel
    array[...] = 3 * np.asarray(array[...])
    factor = 9.0 if what == "weight" and kind == "gated" else 3.0
    assert float(scales(model, "slanc")[site]) == pytest.approx(factor * before, rel=1e-4)


def test_the_first_norm_takes_the_rms_norm_of_the_embedding_rows():
    model = tiny_model(placement="pre", embed_factor=7.0, **GATED)
    expected = 7 * np.sqrt(np.mean(np.sum(np.float64(model.embed.embedding[...]) ** 2, 1)))
    found = scales(model, "slanc")["blocks.0.attention.norm_in"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_freshly_initialized_model_has_the_predicted_norms():
    """Where isotropy holds, so does the formula: even weights, RMS of ‖x‖ within a few per cent."""
    model = tiny_model(placement="post", width=64, layers=3, spread=0.0, **PLAIN)
    found = scales(model, "slanc")
    for site, norms in sizes(model, random_tokens(16)).items():
        if site.endswith("attention.post_norm") and site != "blocks.0.attention.post_norm":
            rms = np.sqrt(np.mean(norms**2))
            assert 0.9 < float(found[site]) / rms < 1.1, site
