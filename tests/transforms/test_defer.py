"""Deferred and cancelled normalization, and how large the products become."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import all_norms
from normlab.numerics import Datapath, DoesNotFit, Precision, Root
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.defer import DeferredNorm, peaks
from tests.conftest import tiny_model
from tests.support.passes import QUICK, TOKENS
from tests.support.transform_models import bits, double, same
from tests.support.transformer_reference import Reference


@pytest.mark.parametrize(
    ("norm", "placement"),
    [("rmsnorm", "pre"), *(("layernorm", p) for p in ("pre", "peri", "lns", "sub-ln"))],
)
def test_deferring_is_exact(norm, placement):
    with jax.enable_x64(True):
        model = double(norm, placement, tied=False, bias=True)
        before = bits(model)
        deferred = apply(model, "defer")
        assert same(model, deferred)
        assert bits(model) == before
    assert isinstance(deferred.blocks[0].mlp.norm_in, DeferredNorm)
    assert isinstance(deferred.norm_final, DeferredNorm)


def test_a_deferred_norm_obeys_precision_and_scale():
    """Its statistic is accumulated as before, so what overflows there overflows here."""
    model = tiny_model(layers=1)
    model.embed.embedding[...] = 1000 * np.asarray(model.embed.embedding[...])
    deferred = apply(model, "defer")
    (said, lost), (said_before, lost_before) = (in_fp16(m, 1.0) for m in (deferred, model))
    np.testing.assert_allclose(said, said_before, rtol=1e-4, atol=1e-4)
    assert lost == lost_before
    assert lost["norm_final"] > 0
    scaled, lost = in_fp16(deferred, 2048.0)
    expected = Reference(model).logits(TOKENS)
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert not any(lost.values())


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _in_fp16(graphdef, params, scales):
    context = Context(Precision.parse("fp16:pairwise"), scales, observe=True)
    logits = nnx.merge(graphdef, params)(TOKENS, context)
    return logits, {k: v.overflowed for k, v in context.observed.items()}


def in_fp16(model, scale):
    """Logits and overflowed rows by site."""
    scales = {norm.site.name: np.float32(scale) for norm in all_norms(model)}
    said, lost = _in_fp16(*nnx.split(model), scales)
    return np.asarray(said), {k: int(v) for k, v in lost.items()}


def test_a_stage_that_a_deferred_norm_has_not_is_refused():
    model = apply(tiny_model(), "defer")
    seen = lambda path: jax.eval_shape(lambda t: model(t, Context(path)), TOKENS).shape  # noqa: E731
    assert seen(Datapath(input="fp16", eps="fp16", root=Root("sqrt", "bf16")))
    for path in (Datapath(output="bf16"), Datapath(root=Root("divide"))):
        with pytest.raises(DoesNotFit, match="its product is made by the map"):
            seen(path)


def test_cancelling_is_exact_without_eps():
    with jax.enable_x64(True):
        qk = {"norm_qk": True}
        model = double("rmsnorm", norm_fields={"eps": 0.0}, placement_fields=qk)
        cancelled = apply(model, "cancel")
        assert same(model, cancelled)
        branch = cancelled.blocks[0].attention.branch
        assert [m.scaled for m in (branch.query, branch.key, branch.value)] == [False, False, True]
        with_eps = double("rmsnorm", norm_fields={"eps": 1e-2}, placement_fields=qk)
        assert not same(with_eps, apply(with_eps, "cancel"))
        assert same(with_eps, apply(with_eps, "defer"))


def test_a_static_scale_changes_nothing_in_exact_arithmetic():
    with jax.enable_x64(True):
        qk = {"norm_qk": True}
        model = apply(double("rmsnorm", norm_fields={"eps": 1e-2}, placement_fields=qk), "cancel")
        scales = {n.site.name: 64.0 for n in all_norms(model)}
        scaled = model(TOKENS, Context(scales=scales))
        np.testing.assert_allclose(scaled, model(TOKENS), rtol=0, atol=1e-11)


def test_products_grow_with_the_stream():
    """The pitfall: max |aW| follows the stream's size, max |norm(a)W| doesn't see it."""
    model = tiny_model(norm_fields={"eps": 0.0}, layers=1)
    one = peaks(model, TOKENS)
    many = peaks(apply(model, "rescale:1024"), TOKENS)
    assert set(one) == {n.site.name for n in all_norms(model)} - {"norm_final"}
    for site, peak in one.items():
        assert many[site].normalized == pytest.approx(peak.normalized, rel=1e-5)
        assert many[site].deferred == pytest.approx(1024 * peak.deferred, rel=1e-5)
        assert many[site].growth == pytest.approx(1024 * peak.growth, rel=1e-5)
    sub = model.blocks[0].attention
    rows = np.float64(model.embed.embedding[...])[TOKENS]
    maps = [np.float64(m.kernel[...]) for m in (sub.branch.query, sub.branch.key, sub.branch.value)]
    stacked = np.float64(sub.norm_in.weight[...])[:, None] * np.concatenate(maps, axis=1)
    unit = rows / np.sqrt((rows**2).mean(-1, keepdims=True))
    peak = one["blocks.0.attention.norm_in"]
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
        apply(tiny_model(norm, placement), transform)
