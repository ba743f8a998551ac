"""Deferred and cancelled normalization, and how large the products become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab.model import Context
from normlab.norms import all_norms
from normlab.numerics import Precision
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.defer import DeferredNorm, peaks
from tests.conftest import tiny_model
from tests.support.transform_models import SMALL, TOKENS, bits, logits, moved, same, small


@pytest.mark.parametrize(
    ("norm", "placement"),
    [("rmsnorm", "pre"), *(("layernorm", p) for p in ("pre", "peri", "lns", "sub-ln"))],
)
def test_deferring_is_exact(norm, placement):
    with jax.enable_x64(True):
        model = small(norm, placement, tied=False, bias=True)
        before = bits(model)
        deferred = apply(model, "defer")
        assert same(model, deferred)
        assert bits(model) == before
    assert isinstance(deferred.blocks[0].mlp.norm_in, DeferredNorm)
    assert isinstance(deferred.norm_final, DeferredNorm)


def test_a_deferred_norm_obeys_precision_and_scale():
    """Its statistic is accumulated as before, so what overflows there overflows here."""
    model = moved(tiny_model(vocab_size=31, **SMALL), dtype=jnp.float32)
    model.embed.embedding[...] *= 300.0
    deferred = apply(model, "defer")
    (said, lost), (said_before, lost_before) = (in_fp16(m, {}) for m in (deferred, model))
    np.testing.assert_allclose(said, said_before, rtol=1e-4, atol=1e-4)
    assert lost == lost_before
    assert lost["norm_final"] == TOKENS.size
    scales = {norm.site.name: jnp.float32(512.0) for norm in all_norms(model)}
    healed, lost = in_fp16(deferred, scales)
    np.testing.assert_allclose(healed, logits(model), rtol=0.02, atol=0.02)
    assert not any(lost.values())


def in_fp16(model, scales):
    """Logits and overflowed rows by site."""

    @jax.jit
    def run(tokens):
        context = Context(Precision.parse("fp16:pairwise"), scales, observe=True)
        return model(tokens, context), {k: v.overflowed for k, v in context.observed.items()}

    said, lost = run(TOKENS)
    return said, {k: int(v) for k, v in lost.items()}


def test_cancelling_is_exact_without_eps():
    with jax.enable_x64(True):
        qk = {"norm_qk": True}
        model = small("rmsnorm", norm_fields={"eps": 0.0}, placement_fields=qk)
        cancelled = apply(model, "cancel")
        assert same(model, cancelled)
        branch = cancelled.blocks[0].attention.branch
        assert [m.scaled for m in (branch.query, branch.key, branch.value)] == [False, False, True]
        with_eps = small("rmsnorm", norm_fields={"eps": 1e-2}, placement_fields=qk)
        assert not same(with_eps, apply(with_eps, "cancel"))
        assert same(with_eps, apply(with_eps, "defer"))


def test_a_static_scale_changes_nothing_in_exact_arithmetic():
    with jax.enable_x64(True):
        qk = {"norm_qk": True}
        model = apply(small("rmsnorm", norm_fields={"eps": 1e-2}, placement_fields=qk), "cancel")
        scales = {n.site.name: 64.0 for n in all_norms(model)}
        scaled = model(TOKENS, Context(scales=scales))
        np.testing.assert_allclose(scaled, model(TOKENS), rtol=0, atol=1e-11)


def test_products_grow_with_the_stream():
    """The pitfall: max |aW| follows the stream's size, max |norm(a)W| doesn't see it."""
    model = tiny_model(vocab_size=31, norm_fields={"eps": 0.0}, **SMALL)
    one = peaks(model, TOKENS)
    many = peaks(apply(model, "rescale(1024)"), TOKENS)
    assert set(one) == {n.site.name for n in all_norms(model)} - {"norm_final"}
    for site, peak in one.items():
        assert many[site].normalized == pytest.approx(peak.normalized, rel=1e-5)
        assert many[site].deferred == pytest.approx(1024 * peak.deferred, rel=1e-5)
        assert many[site].growth == pytest.approx(1024 * peak.growth, rel=1e-5)


def test_peaks_are_the_products_of_the_first_site():
    model = moved(tiny_model(vocab_size=31, **SMALL), dtype=jnp.float32)
    sub = model.blocks[0].attention
    rows = np.float64(model.embed(TOKENS))
    maps = [np.float64(m.kernel[...]) for m in (sub.branch.query, sub.branch.key, sub.branch.value)]
    stacked = np.float64(sub.norm_in.gain[...])[:, None] * np.concatenate(maps, axis=1)
    unit = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5)
    peak = peaks(model, TOKENS)["blocks.0.attention.norm_in"]
    assert peak.deferred == pytest.approx(np.abs(rows @ stacked).max(), rel=1e-4)
    assert peak.normalized == pytest.approx(np.abs(unit @ stacked).max(), rel=1e-4)


@pytest.mark.parametrize(
    ("norm", "placement", "transform", "message"),
    [
        ("dyt", "pre", "defer", "defer: no LayerNorm or RMSNorm.*norm dyt"),
        ("rmsnorm", "post", "defer", "defer: no LayerNorm or RMSNorm.*placement post"),
        ("rmsnorm", "pre", "cancel", "cancel: expected a norm before attention"),
    ],
)
def test_what_cannot_be_deferred_is_refused(norm, placement, transform, message):
    with pytest.raises(DoesNotApply, match=message):
        apply(tiny_model(norm, placement, layers=1, width=8), transform)
