"""The registry of scale rules: every rule serves every site, and a scale changes nothing else."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, placements
from normlab.norms import norms
from normlab.registry import UnknownNameError
from normlab.scaling import RuleDoesNotApply, needs_calibration, scale_rules, scales
from normlab.scaling.moments import root_mean_squares
from normlab.scaling.rules import power_of_two
from normlab.transforms.remove import freeze
from tests.conftest import tiny_model
from tests.support.called_model import Called
from tests.support.passes import QUICK, TOKENS
from tests.support.scaling_models import GATED, UNEVEN, placed, random_tokens, rows
from tests.support.transformer_reference import Reference

WALKS = ("slanc", "slanc_code", "moments", "bound")
"""Rules that walk the weights, and refuse what they can't follow."""
COMMON = ("pre", "post", "peri")
"""Placements that the unit tier asks; the others are system tests."""
PREDICTIONS = ("slanc", "moments", "bound")
TEXT = random_tokens(2, 64)  # windows as long as those of random_tokens: one program for both
FROM_ROWS = [rule for rule in scale_rules if rule == "random_tokens" or needs_calibration(rule)]


def found(model, rule, **options):
    return scales(model, rule, calibration=TEXT, **options)


def assert_each_site_has_one(model, rules):
    inputs = rows(model, TOKENS)
    for rule in rules:
        given = found(model, rule)
        assert given.keys() == inputs.keys(), rule
        for site, x in inputs.items():
            if callable(given[site]):
                shape = jax.eval_shape(given[site], x.astype(np.float32)).shape
                assert shape == (*x.shape[:-1], 1)
                continue
            assert given[site].dtype == jnp.float32
            assert given[site].shape in ((), (x.shape[-2], 1)), (rule, site)
            assert np.all(np.isfinite(given[site])), (rule, site)
            assert np.all(np.asarray(given[site]) > 0), (rule, site)


@pytest.mark.system
def test_a_model_that_is_called_gets_the_scales_of_rules_that_read_rows():
    model = placed("pre", spread=UNEVEN)
    for rule in ("calibrated", "random_tokens", "sqrt_d"):
        theirs = found(model, rule)
        for site, scale in found(Called(model, padding=-1), rule).items():
            np.testing.assert_allclose(scale, theirs[site], rtol=1e-5)
    with pytest.raises(RuleDoesNotApply, match=r"'slanc' reads weights.*random_tokens, row_max"):
        found(Called(model), "slanc")


@pytest.mark.parametrize(
    "placement",
    [pytest.param(p, marks=[pytest.mark.system] * (p not in COMMON)) for p in placements],
)
def test_every_rule_has_a_scale_for_every_site(placement):
    rules = [rule for rule in scale_rules if rule not in FROM_ROWS]
    assert_each_site_has_one(placed(placement, spread=UNEVEN), rules)


@pytest.mark.system
@pytest.mark.parametrize("placement", placements)
def test_every_rule_that_looks_at_rows_has_one_too(placement):
    assert_each_site_has_one(placed(placement, spread=UNEVEN), FROM_ROWS)


@pytest.mark.parametrize("norm", [name for name in norms if not norms[name].has_statistic])
def test_norms_without_a_statistic_get_no_scale(norm):
    assert all(found(tiny_model(norm), rule) == {} for rule in scale_rules)


@cache
def large():
    """A model whose norms overflow in FP16."""
    model = tiny_model(placement_fields={"norm_qk": True}, layers=1, spread=UNEVEN, **GATED)
    model.embed.embedding[...] = 1000 * np.asarray(model.embed.embedding[...])
    return model


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _outcome(graphdef, params, scales):
    exact, half = Context("fp32:sequential", scales), Context("fp16", scales, observe=True)
    logits = [nnx.merge(graphdef, params)(TOKENS, context) for context in (exact, half)]
    return logits[0], sum(o.overflowed for o in half.observed.values())


@cache
def ones():
    """A scale of 1 for each site, or head."""
    return jax.tree.map(np.ones_like, jax.device_get(found(large(), "moments")))


def outcome(scales=None):
    """Logits of `large` with its sums in an order of their own, and rows that overflow in FP16."""
    like = ones()
    if scales is None or not any(map(callable, scales.values())):  # one program for all
        scales = {n: np.broadcast_to((scales or like)[n], one.shape) for n, one in like.items()}
    logits, lost = _outcome(*nnx.split(large()), scales)
    return np.asarray(logits), int(lost)


IN_RANGE = ("slanc", "moments", "bound", "calibrated", "random_tokens", "row_max")


@pytest.mark.parametrize("rule", scale_rules)
def test_any_scale_changes_only_rounding_and_a_good_one_ends_overflow(rule):
    expected = Reference(large()).logits(TOKENS)
    logits, lost = outcome(found(large(), rule))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    if rule in IN_RANGE:
        assert lost == 0


def test_a_power_of_two_changes_no_bit_computed_beforehand_or_row_by_row():
    plain, lost = outcome()
    assert lost > 0
    for rule in ("moments", "row_max"):
        scale = found(large(), rule, pow2=True)
        if rule == "moments":
            assert sum(bool(np.any(s != 1)) for s in scale.values()) > len(scale) / 2
        assert np.array_equal(outcome(scale)[0], plain), rule


def test_rounding_to_a_power_of_two_is_to_the_nearest():
    s = np.float32([1e-6, 0.7, 0.71, 1.0, 1.41, 1.42, 3.0, 1000.0, 1e38])
    expected = 2.0 ** np.round(np.log2(s.astype(np.float64)))
    assert np.array_equal(power_of_two(jnp.asarray(s)), expected)


def test_pow2_rounds_what_a_rule_gives():
    for rule in ("slanc", "row_max"):
        exact, rounded = found(large(), rule), found(large(), rule, pow2=True)
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
        for site in exact:
            a, b = exact[site], rounded[site]
            a, b = (a(x), b(x)) if callable(a) else (a, b)
            assert np.array_equal(b, power_of_two(a))


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'moments'"):
        scales(tiny_model(), "moment")


def test_a_rule_that_looks_at_text_needs_some():
    assert [rule for rule in scale_rules if needs_calibration(rule)] == [
        "calibrated",
        "calibrated_max",
        "calibrated_mean",
    ]
    with pytest.raises(ValueError, match="calibration tokens"):
        scales(tiny_model(), "calibrated")
    with pytest.raises(ValueError, match=r"of shape \[5\]: expected windows of them, \[w, l\]"):
        scales(tiny_model(), "calibrated", calibration=np.arange(5))


def predicted(model, rule):
    """What a rule that walks the weights finds, before any cap."""
    return root_mean_squares(model) if rule == "moments" else scale_rules[rule](model)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for site in a:
        np.testing.assert_allclose(a[site], b[site], rtol=1e-4, err_msg=site)


def multiply(param, factor):
    """A parameter by a number, or a vector's numbers."""
    param[...] = np.float32(factor) * np.asarray(param[...])


@pytest.mark.parametrize("rule", PREDICTIONS)
def test_a_factor_on_a_norms_output_is_a_smaller_weight(rule):
    lns, pre = (tiny_model(placement=name, **GATED) for name in ("lns", "pre"))
    for layer, block in enumerate(pre.blocks, start=1):
        for part in (block.attention, block.mlp):
            multiply(part.norm_in.weight, 1 / np.sqrt(layer))
    assert_same(predicted(lns, rule), predicted(pre, rule))


@pytest.mark.parametrize("rule", PREDICTIONS)
def test_a_factor_on_the_stream_is_a_larger_sum_of_smaller_branches(rule):
    """αx + F(x) = α(x + F(x)/α)."""
    deep, post = (tiny_model(placement=name, **GATED) for name in ("deepnorm", "post"))
    alpha = deep.blocks[0].mlp.alpha
    for block in post.blocks:
        multiply(block.mlp.branch.down.kernel, 1 / alpha)
        multiply(block.attention.branch.out.kernel, 1 / alpha)
    expected = {site: alpha * np.asarray(s) for site, s in predicted(post, rule).items()}
    assert_same(predicted(deep, rule), expected)


@pytest.mark.parametrize(
    ("placement", "rule"),
    [(p, r) for p in ("normformer", "hybridnorm") for r in ("slanc", "moments")]
    + [("hybridnorm", "bound")],
)
def test_a_head_scale_belongs_to_what_reads_the_heads(placement, rule):
    scaled, folded = (tiny_model(placement=placement, heads=4, layers=1) for _ in range(2))
    factors = np.float32([0.5, 2.0, 3.0, 0.1])
    scaled.blocks[0].attention.branch.head_scale = nnx.data(nnx.Param(jnp.asarray(factors)))
    branch = folded.blocks[0].attention.branch
    branch.head_scale = None
    multiply(branch.out.kernel, np.repeat(factors, 8)[:, None])
    assert_same(predicted(scaled, rule), predicted(folded, rule))


@pytest.mark.parametrize("rule", PREDICTIONS)
def test_what_a_norm_inside_a_branch_hides_is_not_seen_behind_it(rule):
    """W_V under sub-ln and hybridnorm: only the norm that reads the values sees its size."""
    for placement, reader in (("sub-ln", "sub_norm"), ("hybridnorm", "value.norm_v")):
        model, larger = (tiny_model(placement=placement, layers=1) for _ in range(2))
        multiply(larger.blocks[0].attention.branch.value.kernel, 7)
        expected = dict(predicted(model, rule))
        site = f"blocks.0.attention.{reader}"
        expected[site] = 7.0 * np.asarray(expected[site])
        assert_same(predicted(larger, rule), expected)


@pytest.fixture
def toy():
    """A rule that a test fills in."""
    values = {}

    def rule(model):
        return values

    scale_rules.register("toy")(rule)
    yield values
    scale_rules.remove("toy")


@pytest.mark.parametrize("rule", scale_rules)
def test_a_frozen_norm_is_refused_by_rules_that_read_weights(rule):
    """Its rows are as long as what it is given: bounds and predictions behind it would be wrong."""
    model = freeze(tiny_model(layers=1), {"blocks.0.mlp.norm_in": 100.0})
    if rule in WALKS:
        with pytest.raises(RuleDoesNotApply, match=r"blocks\.0\.mlp\.norm_in.*random_tokens"):
            found(model, rule)
    else:
        assert "norm_final" in found(model, rule)


def test_a_new_rule_is_a_registered_function(toy):
    toy["norm_final"] = 3.0
    assert scales(tiny_model(), "toy") == {"norm_final": 3.0}


def test_a_branch_of_zeros_has_scale_one():
    model = tiny_model(placement="peri")
    multiply(model.blocks[0].mlp.branch.down.kernel, 0)
    assert scales(model, "slanc")["blocks.0.mlp.norm_out"] == 1


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan, 1e39])
def test_a_scale_that_is_no_positive_number_is_refused(toy, bad):
    toy["norm_final"] = bad
    with pytest.raises(RuleDoesNotApply, match="toy at norm_final"):
        scales(tiny_model(), "toy")
