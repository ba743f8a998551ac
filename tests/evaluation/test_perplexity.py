"""The hot loop against float64 arithmetic in NumPy, and what an overflow does to it."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.evaluation.perplexity import (
    Scaled,
    Scores,
    _compared,
    _layer,
    default_batch,
    exp,
    score,
    score_columns,
    unit_scales,
)
from normlab.evaluation.protocols.windows import assemble
from normlab.norms.sites import with_statistic
from normlab.numerics import FloatFormat, Precision
from normlab.scaling import scales
from tests.conftest import TINY, VOCAB, skeleton, tiny_model
from tests.support.called_model import Called
from tests.support.reference_forward import log_softmax
from tests.support.scored_windows import (
    BATCH,
    LENGTH,
    SPANS,
    TEXT,
    HalfReference,
    columns,
    expected,
    loud,
    scored,
    times,
    windows,
)
from tests.support.transformer_reference import Reference

D = TINY["width"]
ORDERS = ("fp32", "fp16:pairwise", "fp16:sequential")


# --- against an independent computation


def test_sums_are_those_of_an_independent_float64_computation():
    model, read, done = tiny_model(), windows(), []
    scores, again = scored(model, read, "fp32", "fp32", on_batch=done.append)
    nll, _ = expected(Reference(model), read)
    np.testing.assert_allclose(scores.token_nll, nll, rtol=2e-5)
    np.testing.assert_allclose(scores.window_nll, nll.sum(1), rtol=2e-6)
    total = scores.window_nll.sum() / read.scored.sum()
    assert scores.perplexity == pytest.approx(math.exp(total), rel=1e-12)
    assert scores.nonfinite_windows == 0
    assert {rows.rows for rows in scores.sites.values()} == {read.lengths.sum()}
    assert done == [3, 6, 8]
    assert scores.beside is None
    assert np.abs(again.beside.kl).max() == np.abs(again.beside.delta_nll).max() == 0
    assert again.beside.agrees[read.scored].all()


def test_what_a_site_saw_is_that_of_the_rows_it_was_given():
    model, read = tiny_model(), windows()
    half = HalfReference(model, "pairwise")
    half.logits(read.inputs)
    stream = half.inputs["norm_final"]
    real = np.arange(LENGTH) < read.lengths[:, None]
    norms = np.sort(np.linalg.norm(stream[real], axis=-1))
    s = np.float32(22.6 * np.median(norms))  # about half of the rows are precision_loss
    low = scored(model, read, "fp32", ("fp16:pairwise", {"norm_final": s}))[1]
    site = low.sites["norm_final"]
    assert site.rows == len(norms) == sum(site.sums["counts"]) == sum(site.squares["counts"])
    assert site.max_norm == pytest.approx(norms[-1], rel=1e-4)
    assert site.max_abs == pytest.approx(np.abs(stream[real]).max(), rel=1e-4)
    assert site.median_norm == pytest.approx(np.median(norms), rel=2 ** (1 / 8) - 1)
    assert 2 ** site.squares["first"] <= norms[0] ** 2 < 2 ** (site.squares["first"] + 0.25)
    assert 2 ** site.sums["first"] <= (norms[0] / s) ** 2 < 2 ** (site.sums["first"] + 0.25)
    assert abs(site.sum_error) < 1e-3
    lossy = 2.0**-11 * (norms**2 + D * 1e-5) / s**2 < D * 2.0**-25  # docs/scales.md
    assert 0 < site.precision_loss == lossy.sum() < len(norms)
    assert site.underflow_errors == site.above == 0


@pytest.mark.system
def test_a_model_that_is_called_has_the_scores_of_one_that_is_traced():
    """Its last window is shorter, and none is padded."""
    model, read = loud(tiny_model(), 300.0), windows()
    traced = scored(model, read, *ORDERS)[2]
    assert any(rows.overflowed for rows in traced.sites.values())
    called = score(Called(model), read, ORDERS[2], batch=BATCH)
    np.testing.assert_allclose(called.token_nll, traced.token_nll, atol=2e-3)
    assert (called.token_nll[~read.scored] == 0).all()
    for site, rows in traced.sites.items():
        for count in ("rows", "overflowed", "above", "zero"):
            assert getattr(called.sites[site], count) == getattr(rows, count), (site, count)


# --- padding


def test_padding_is_neither_scored_nor_counted():
    """Whatever stands there, and however many windows fill up the last batch."""
    model, read = tiny_model(), windows()
    padding = np.arange(LENGTH) >= read.lengths[:, None]
    other = dataclasses.replace(read, inputs=np.where(padding, 7, read.inputs))
    for ours, theirs in zip(*(scored(model, r, *ORDERS) for r in (read, other)), strict=True):
        assert ours.token_nll.tobytes() == theirs.token_nll.tobytes()
        assert ours.sites == theirs.sites
    short = scored(model, windows(SPANS[-1:]), *ORDERS)
    for scores in short:
        assert {rows.rows for rows in scores.sites.values()} == {5}


@pytest.mark.system
def test_a_window_without_padding_has_the_same_sums_and_rows():
    model, exact = tiny_model("layernorm", "post"), assemble(TEXT, SPANS[-1:], 5)
    padded = score(model, windows(SPANS[-1:]), "fp16:lanes4", batch=3)
    alone = score(model, exact, "fp16:lanes4", batch=1)
    np.testing.assert_allclose(padded.window_nll, alone.window_nll, rtol=1e-5)
    for site, rows in alone.sites.items():
        assert rows.rows == 5
        floats = {"max_abs": 0.0, "max_norm": 0.0, "sum_error": 0.0}
        same = [dataclasses.replace(s, **floats) for s in (padded.sites[site], rows)]
        assert same[0] == same[1]
        assert padded.sites[site].max_norm == pytest.approx(rows.max_norm, rel=1e-5)
        # of float32 sums by two programs
        assert padded.sites[site].sum_error == pytest.approx(rows.sum_error, abs=2e-7)


@pytest.mark.system
@pytest.mark.parametrize("batch", [1, 5, None])
def test_the_size_of_a_batch_changes_no_count_and_hardly_a_sum(batch):
    reference, scores = (
        score(tiny_model(), windows(), "fp16:sequential", batch=b) for b in (2, batch)
    )
    np.testing.assert_allclose(scores.window_nll, reference.window_nll, rtol=1e-4)
    assert {s: r.rows for s, r in scores.sites.items()} == {
        s: r.rows for s, r in reference.sites.items()
    }


def test_padding_does_no_harm_where_a_norm_reads_what_entered_the_block_or_has_no_eps():
    """Padding is token 0, whose row is made huge here; the text has none."""
    model = tiny_model("bhyt-estimated", norm_fields={"eps": 0.0})
    model.embed.embedding[...] = model.embed.embedding[...].at[0].set(1e5)
    read = windows(SPANS[-1:])
    scores = score(model, read, "fp16", batch=BATCH)
    assert read.inputs[0, : read.lengths[0]].all()
    assert (scores.nonfinite_windows, scores.beside) == (0, None)
    for site, rows in scores.sites.items():
        assert (rows.rows, rows.overflowed) == (5, 0), site
        assert rows.max_norm < 1e3, site


# --- low precision


def test_an_overflow_is_counted_and_a_static_scale_takes_it_away():
    model, read = loud(tiny_model(), 5000.0), windows()
    wide, fallen = scored(model, read, "fp32", "fp16:pairwise")
    scales = {site: np.float32(rows.max_norm) for site, rows in wide.sites.items()}
    scaled = scored(model, read, "fp32", ("fp16:pairwise", scales))[1]
    assert sum(r.overflowed for r in wide.sites.values()) == 0
    assert all(r.overflowed == r.rows > 0 for r in fallen.sites.values())
    assert sum(r.overflowed for r in scaled.sites.values()) == 0
    assert fallen.window_nll.tolist() != wide.window_nll.tolist()
    np.testing.assert_allclose(scaled.window_nll, wide.window_nll, rtol=1e-3)


def test_each_scored_token_is_compared_with_the_reference():
    """At this size the rows' sums of squares lie on both sides of 65,504."""
    model, read = loud(tiny_model(), 60.0), windows()
    wide, *lows = scored(model, read, *ORDERS)
    for low in lows:
        rows = low.sites["norm_final"]
        assert 0 < rows.overflowed < rows.rows == read.lengths.sum()
        assert (low.window_nll != wide.window_nll).all()
        np.testing.assert_allclose(
            low.beside.delta_nll, low.token_nll - wide.token_nll, rtol=1e-3, atol=1e-5
        )
        assert np.abs(low.beside.delta_nll).max() > 0.01
        assert all((array[~read.scored] == 0).all() for array in low.beside)
        assert 0 < low.beside.agrees[read.scored].mean() < 1
        assert (low.beside.kl[read.scored] > 0).all()
    # Where all of a window's last rows overflow, both orders end in the same flat logits.
    other = lows[0].window_nll != lows[1].window_nll
    assert other.sum() > len(other) / 2


def test_comparing_position_by_position_is_comparing_all_at_once():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (BATCH, LENGTH, VOCAB)).astype(np.float32)
    noise = np.linspace(-1, 1, LENGTH, dtype=np.float32)[:, None]
    other = logits + noise * np.roll(logits, 1, -1)
    scored_ = np.arange(LENGTH) < np.array([LENGTH, 4, 1])[:, None]
    kl, agrees = _compared(logits, other, scored_)
    p, q = log_softmax(logits), log_softmax(other)
    want = (np.exp(p) * (p - q)).sum(-1)
    np.testing.assert_allclose(kl, np.where(scored_, want, 0), rtol=1e-3, atol=1e-6)
    same = logits.argmax(-1) == other.argmax(-1)
    assert 0 < (same & scored_).sum() < scored_.sum()
    np.testing.assert_array_equal(agrees, same & scored_)


@pytest.mark.system
def test_unit_scales_are_no_scales_bit_for_bit():
    model, read = tiny_model(), windows()
    free, given = scored(model, read, "fp32", ("fp32", unit_scales(model)))
    assert free.token_nll.tobytes() == given.token_nll.tobytes()


def test_scales_are_for_sites_with_a_statistic():
    def sites(norm, placement="pre"):
        return unit_scales(nnx.merge(*skeleton(norm, placement, VOCAB, (), (), ())))

    assert len(sites("layernorm", "peri")) == TINY["layers"] * 4 + 1
    assert sites("none") == sites("dyt") == {}
    assert score(tiny_model("dyt"), windows(), "fp32", batch=BATCH).sites == {}


def test_non_finite_results_are_shown():
    scores, _ = scored(times(tiny_model(), np.nan), windows(), "fp32", "fp32")
    assert math.isnan(scores.perplexity)
    assert scores.nonfinite_windows == len(SPANS)
    huge = Scores(np.array([9e5, 1e5]), np.zeros((2, 1), np.float32), np.array([1, 1]), {})
    assert huge.perplexity == math.inf == exp(1e6)


# --- the loop


@pytest.mark.system
def test_a_column_alone_is_that_beside_others_and_its_precision_may_be_a_string():
    model, read = loud(tiny_model(), 60.0), windows()
    beside = scored(model, read, *ORDERS)[1]
    alone = score(model, read, "fp16:pairwise", batch=BATCH)
    assert alone.beside is None
    np.testing.assert_allclose(beside.token_nll, alone.token_nll, rtol=1e-5, atol=1e-6)
    for site, rows in alone.sites.items():
        assert rows.overflowed == beside.sites[site].overflowed
    parsed = score(model, read, Precision.parse("fp16:pairwise"), batch=BATCH)
    assert parsed.sum_nll == alone.sum_nll


def test_a_rule_needs_scales():
    with pytest.raises(ValueError, match=r"scales\(model, 'slanc'\)"):
        score(tiny_model(), windows(), "fp16+slanc")


@pytest.mark.system
def test_a_stream_that_fp16_cannot_hold_is_nan_where_activations_are_fp16():
    """Norms alone don't show it: their scale brings their sums into range."""
    model, read, held = tiny_model(), windows(), FloatFormat.parse("fp16")
    far = loud(model, 2.0**20)
    of_norms = Scaled(Precision.parse("fp16"), scales(far, "random_tokens"))
    everything = of_norms._replace(activations=held)
    asked = [Scaled(Precision.parse("fp32")), of_norms, everything]
    exact, restored, lost = score_columns(far, read, asked, batch=BATCH)
    assert restored.perplexity == pytest.approx(exact.perplexity, rel=1e-3)
    assert math.isnan(lost.perplexity)
    assert lost.nonfinite_windows == len(read)
    reference = HalfReference(far, "pairwise", dict(of_norms.scales))
    reference.logits(read.inputs)
    real = np.arange(LENGTH) < read.lengths[:, None]
    outside = {s: int((np.abs(x[real]) > 65504).sum()) for s, x in reference.inputs.items()}
    assert {s: seen.outside for s, seen in restored.sites.items()} == outside
    assert sum(outside.values()) > 0
    assert sum(seen.outside for seen in exact.sites.values()) == 0
    assert lost.sites["norm_final"].outside == read.lengths.sum() * D  # all NaN
    near = score_columns(model, read, [asked[0], Scaled(asked[0].precision, None, held)])
    assert near[1].perplexity == pytest.approx(near[0].perplexity, rel=1e-2)
    assert near[1].perplexity != near[0].perplexity


@pytest.mark.system
def test_kept_sites_are_in_float32_and_every_choice_shares_a_program():
    model, read = loud(tiny_model(), 60.0), windows()
    sites, half = with_statistic(model), Precision.parse("fp16:pairwise")

    def keeping(*kept):
        return Scaled(half, keep_fp32={site: site in kept for site in sites})

    exact, narrow = scored(model, read, "fp32", "fp16:pairwise")
    asked = [columns("fp32")[0], keeping(), keeping("norm_final")]
    _, none, one = score_columns(model, read, asked, batch=BATCH)
    compiled = _layer._cache_size()
    _, every = score_columns(model, read, [asked[0], keeping(*sites)], batch=BATCH)
    assert _layer._cache_size() == compiled
    np.testing.assert_allclose(none.token_nll, narrow.token_nll, rtol=1e-5)
    np.testing.assert_allclose(every.token_nll, exact.token_nll, rtol=1e-5)
    nll, _ = expected(HalfReference(model, "pairwise", kept=("norm_final",)), read)
    np.testing.assert_allclose(one.token_nll, nll, rtol=2e-3)
    assert np.abs(one.token_nll - none.token_nll).max() > 1
    assert one.sites["norm_final"].overflowed == 0 < none.sites["norm_final"].overflowed
    for site in set(sites) - {"norm_final"}:
        assert one.sites[site] == none.sites[site]


def test_default_batches_are_even_and_small_enough():
    read = windows()
    assert default_batch(read, VOCAB) == 8
    assert default_batch(read, 400_000) == 3  # 64 MiB hold 41 rows of 400,000 logits: 3 windows
    assert default_batch(read, 10**9) == 1


def test_one_program_serves_all_batches_and_scales():
    scored(tiny_model(), windows(), "fp32", "fp16:pairwise")
    before = _layer._cache_size()
    given = {"norm_final": jnp.float32(3)}
    scored(tiny_model(seed=5), windows(), "fp32", ("fp16:pairwise", given))
    assert _layer._cache_size() == before
