"""The hot loop against float64 arithmetic in NumPy, and what an overflow does to it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.divergence import kl_divergence
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms
from normlab.numerics import Precision
from normlab.perplexity import (
    Column,
    Scores,
    _batch_nll,
    _compared,
    default_batch,
    exp,
    score,
    score_columns,
    unit_scales,
)
from normlab.protocols.windows import Span, Stream, assemble

D, VOCAB, LENGTH = 64, 37, 11
RNG = np.random.default_rng(0)
TEXT = Stream(*(RNG.integers(0, VOCAB, 100).astype(np.int32) for _ in range(3)))
SPANS = [*(Span(i, i + 12, i + 1 + i % 5) for i in range(0, 84, 12)), Span(84, 90, 85)]


def build(norm="rmsnorm", placement="pre", seed=0, layers=1, **config):
    shape = ModelConfig(
        layers=layers, width=D, heads=4, max_length=32, positions="none", init_std=0.02, **config
    )
    return Transformer(shape, norms[norm].Config(), PlacementConfig(type=placement), VOCAB, seed)


def windows(spans=SPANS):
    return assemble(TEXT, spans, LENGTH)


def parse(text):
    return Precision.parse(text)


def with_weights(model, change):
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(change, params))


# --- against an independent computation


def rms(x, gain, eps=1e-5):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def numpy_logits(model, tokens):
    """The whole forward pass of a pre-norm, position-less model in float64."""
    w = lambda p: np.asarray(p[...], np.float64)  # noqa: E731
    x = w(model.embed.embedding)[tokens]
    length, heads = len(tokens), model.config.heads
    hidden = np.triu(np.full((length, length), -np.inf), 1)
    for block in model.blocks:
        a, h = block.attention.branch, rms(x, w(block.attention.norm_in.gain))
        q, k, v = (h @ w(m.kernel) for m in (a.query, a.key, a.value))
        q, k, v = (t.reshape(length, heads, -1).swapaxes(0, 1) for t in (q, k, v))
        s = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + hidden
        p = np.exp(s - s.max(-1, keepdims=True))
        out = (p / p.sum(-1, keepdims=True)) @ v
        x = x + out.swapaxes(0, 1).reshape(length, -1) @ w(a.out.kernel)
        m, h = block.mlp.branch, rms(x, w(block.mlp.norm_in.gain))
        gate = h @ w(m.gate.kernel)
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w(m.up.kernel))) @ w(m.down.kernel)
    return rms(x, w(model.norm_final.gain)) @ w(model.embed.embedding).T


def test_sums_are_those_of_an_independent_float64_computation():
    model, read = with_weights(build(layers=2), lambda x: x * 4), windows()
    scores = score(model, read, parse("fp32"), batch=3)
    for i in range(len(read)):
        n = read.lengths[i]
        logits = numpy_logits(model, read.inputs[i, :n])
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll = -logp[np.arange(n), read.targets[i, :n]]
        asked = read.scored[i, :n]
        np.testing.assert_allclose(scores.token_nll[i, :n][asked], nll[asked], rtol=2e-5)
        np.testing.assert_allclose(scores.window_nll[i], nll[asked].sum(), rtol=2e-6)
    total = scores.window_nll.sum() / read.scored.sum()
    assert scores.perplexity == pytest.approx(math.exp(total), rel=1e-12)
    assert scores.nonfinite_windows == 0


@pytest.mark.system
@pytest.mark.parametrize("batch", [1, 5, None])
def test_the_size_of_a_batch_changes_no_count_and_hardly_a_sum(batch):
    reference = score(build(), windows(), parse("fp16:sequential"), batch=2)
    scores = score(build(), windows(), parse("fp16:sequential"), batch=batch)
    np.testing.assert_allclose(scores.window_nll, reference.window_nll, rtol=1e-4)
    assert {s: r.rows for s, r in scores.sites.items()} == {
        s: r.rows for s, r in reference.sites.items()
    }


def test_padding_is_neither_scored_nor_counted():
    """The same tokens in windows without any padding are the reference."""
    model, exact = build("layernorm", "post"), assemble(TEXT, SPANS[-1:], 5)
    padded = score(model, windows(SPANS[-1:]), parse("fp16:lanes(4)"), batch=3)
    alone = score(model, exact, parse("fp16:lanes(4)"), batch=1)
    np.testing.assert_allclose(padded.window_nll, alone.window_nll, rtol=1e-5)
    for site, rows in alone.sites.items():
        assert rows.rows == 5
        assert dataclasses.replace(padded.sites[site], max_abs=0, max_norm=0) == (
            dataclasses.replace(rows, max_abs=0, max_norm=0)
        )
        assert padded.sites[site].max_norm == pytest.approx(rows.max_norm, rel=1e-5)


def test_padding_is_not_counted_where_the_rows_that_entered_the_block_are():
    """Padding is token 0, whose row is made huge here; the text has none."""
    model, read = build("bhyt-estimated"), windows(SPANS[-1:])
    assert read.inputs[0, : read.lengths[0]].all()
    model.embed.embedding[...] = model.embed.embedding[...].at[0].set(1e5)
    for site, rows in score(model, read, parse("fp16"), batch=1).sites.items():
        assert (rows.rows, rows.overflowed) == (5, 0), site
        assert rows.max_norm < 1e3, site


def test_padding_does_no_harm_where_eps_is_zero():
    shape = ModelConfig(layers=1, width=D, heads=4, max_length=32)
    config = norms["rmsnorm"].Config(eps=0.0)
    model = Transformer(shape, config, PlacementConfig(), VOCAB)
    assert score(model, windows(), parse("fp16"), batch=3).nonfinite_windows == 0


# --- low precision


def loud(factor):
    """A model whose residual stream is `factor` times as large, which fp32 norms don't see."""
    model = build()
    names = ("embed", "out", "down")

    def change(path, x):
        where = jax.tree_util.keystr(path)
        return x * factor if any(f"'{name}'" in where for name in names) else x

    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(change, params))


def test_an_overflow_is_counted_and_a_static_scale_heals_it():
    model, read = loud(20_000.0), windows()
    wide = score(model, read, parse("fp32"))
    fallen = score(model, read, parse("fp16:pairwise"))
    scales = {site: np.float32(rows.max_norm) for site, rows in wide.sites.items()}
    healed = score(model, read, parse("fp16:pairwise+calibrated"), scales)
    assert sum(r.overflowed for r in wide.sites.values()) == 0
    assert all(r.overflowed == r.rows > 0 for r in fallen.sites.values())
    assert sum(r.overflowed for r in healed.sites.values()) == 0
    assert fallen.window_nll.tolist() != wide.window_nll.tolist()
    np.testing.assert_allclose(healed.window_nll, wide.window_nll, rtol=1e-3)


def test_the_order_of_summation_shows_where_some_rows_overflow():
    """At this size the rows' sums of squares lie on both sides of 65,504."""
    model, read = loud(1600.0), windows()
    wide = score(model, read, parse("fp32"))
    found = {o: score(model, read, parse(f"fp16:{o}")) for o in ("sequential", "pairwise")}
    for scores in found.values():
        rows = scores.sites["blocks.0.attention.norm_in"]
        assert 0 < rows.overflowed < rows.rows == read.lengths.sum()
        assert (scores.window_nll != wide.window_nll).all()
    # Where all of a window's last rows overflow, both orders end in the same flat logits.
    other = found["sequential"].window_nll != found["pairwise"].window_nll
    assert other.sum() > len(other) / 2


def test_unit_scales_are_no_scales_bit_for_bit():
    model, read = build("layernorm", "peri"), windows()
    ones = unit_scales(model)
    assert len(ones) == 2 * 2 + 1
    free = score(model, read, parse("fp32"))
    given = score(model, read, parse("fp32"), ones)
    assert free.token_nll.tobytes() == given.token_nll.tobytes()


def test_norms_without_a_statistic_see_nothing():
    assert score(build("dyt"), windows(), parse("fp32")).sites == {}
    assert unit_scales(build("none")) == {}


def test_non_finite_results_are_shown():
    model = with_weights(build(), lambda x: x * np.float32(np.nan))
    scores = score(model, windows(), parse("fp32"))
    assert math.isnan(scores.perplexity)
    assert scores.nonfinite_windows == len(SPANS)
    huge = Scores(np.array([9e5, 1e5]), np.zeros((2, 1), np.float32), np.array([1, 1]), {})
    assert huge.perplexity == math.inf == exp(1e6)


# --- token by token


def test_columns_side_by_side_are_the_columns_alone():
    model, read = loud(1600.0), windows()
    texts = ("fp32", "fp16:pairwise")
    found = score_columns(model, read, [Column(parse(t)) for t in texts], batch=3)
    for text, scores in zip(texts, found, strict=True):
        alone = score(model, read, parse(text), batch=3)
        np.testing.assert_allclose(scores.token_nll, alone.token_nll, rtol=1e-5, atol=1e-6)
        assert scores.sites["norm_final"].overflowed == alone.sites["norm_final"].overflowed
    assert found[0].beside is None
    assert score(model, read, parse("fp16")).beside is None


def test_each_scored_token_is_compared_with_the_reference():
    model, read = with_weights(build(layers=2), lambda x: x * 4), windows()
    texts = ("fp32", "fp8_e5m2:sequential", "fp32")
    wide, low, same = score_columns(model, read, [Column(parse(t)) for t in texts], batch=3)
    np.testing.assert_allclose(
        low.beside.delta_nll, low.token_nll - wide.token_nll, rtol=1e-3, atol=1e-5
    )
    assert np.abs(low.beside.delta_nll).max() > 0.01
    assert all((array[~read.scored] == 0).all() for array in low.beside)
    assert 0 < low.beside.agrees[read.scored].mean() < 1
    assert (low.beside.kl[read.scored] > 0).all()
    assert same.beside.agrees[read.scored].all()
    assert np.abs(same.beside.kl).max() == np.abs(same.beside.delta_nll).max() == 0


def test_comparing_position_by_position_is_comparing_all_at_once():
    logits = np.random.default_rng(0).normal(0, 3, (3, 7, 50)).astype(np.float32)
    other = logits + np.linspace(-1, 1, 7, dtype=np.float32)[:, None] * np.roll(logits, 1, -1)
    scored = np.arange(7) < np.array([7, 4, 1])[:, None]
    kl, agrees = _compared(logits, other, scored)
    want = kl_divergence(logits, other)
    np.testing.assert_allclose(kl, np.where(scored, want, 0), rtol=1e-5, atol=1e-7)
    same = logits.argmax(-1) == other.argmax(-1)
    assert 0 < (same & scored).sum() < scored.sum()
    np.testing.assert_array_equal(agrees, same & scored)


def test_what_a_site_saw_is_that_of_the_rows_it_was_given():
    model, read = build(), windows(SPANS[:3])
    scales = {"norm_final": np.float32(3.0)}
    site = score(model, read, parse("fp16"), scales, batch=2).sites["norm_final"]
    seen = []

    class Spy(type(model.norm_final)):
        def __call__(self, x, acc):
            seen.append(np.asarray(x, np.float64))
            return super().__call__(x, acc)

    model.norm_final.__class__ = Spy
    for i, n in enumerate(read.lengths):
        model(read.inputs[i : i + 1, :n])
    norms = np.sort(np.linalg.norm(np.concatenate([x[0] for x in seen]), axis=-1))
    assert site.rows == len(norms) == sum(site.sums["counts"]) == sum(site.squares["counts"])
    assert site.max_norm == pytest.approx(norms[-1], rel=1e-4)
    assert site.median_norm == pytest.approx(np.median(norms), rel=2 ** (1 / 8) - 1)
    assert 2 ** site.squares["first"] <= norms[0] ** 2 < 2 ** (site.squares["first"] + 0.25)
    assert 2 ** site.sums["first"] <= norms[0] ** 2 / 9 < 2 ** (site.sums["first"] + 0.25)
    assert abs(site.sum_error) < 1e-3
    lossy = 2.0**-11 * (norms**2 + D * 1e-5) / 9 < D * 2.0**-25  # docs/scales.md
    assert 0 < site.imprecise == lossy.sum() < len(norms)
    assert site.harmed == site.above == 0


# --- the loop


def test_progress_is_told_after_each_batch():
    done = []
    score(build(), windows(), parse("fp32"), batch=3, on_batch=done.append)
    assert done == [3, 6, 8]


def test_default_batches_are_even_and_small_enough():
    read = windows()
    assert default_batch(read, VOCAB) == 8
    assert default_batch(read, 400_000) == 3  # 64 MiB hold 41 rows of 400,000 logits: 3 windows
    assert default_batch(read, 10**9) == 1


def test_one_program_serves_all_batches_and_scales():
    model = build(seed=5, hidden=24)
    before = _batch_nll._cache_size()
    score(model, windows(), parse("fp16"), batch=3)
    score(model, windows(), parse("fp16+slanc"), {"norm_final": jnp.float32(3)}, batch=3)
    assert _batch_nll._cache_size() == before + 1


def test_a_precision_may_be_a_string_and_its_rule_needs_scales():
    model = build()
    assert score(model, windows(), "fp16").sum_nll == score(model, windows(), parse("fp16")).sum_nll
    with pytest.raises(ValueError, match=r"scales\(model, 'slanc'\)"):
        score(model, windows(), "fp16+slanc")
