"""The registry of scale rules: every rule serves every site, and a scale changes nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, placements
from normlab.norms import norms
from normlab.numerics import Precision
from normlab.registry import UnknownNameError
from normlab.scaling import RuleDoesNotApply, needs_calibration, scale_rules, scales
from normlab.scaling.moments import root_mean_squares
from normlab.scaling.rules import power_of_two
from normlab.transforms.remove import freeze
from tests.support.scaling_models import EACH_PLACEMENT, EVERYWHERE, KINDS, random_tokens, uneven

STATISTICS = [name for name in norms if norms[name].has_statistic]
TOKENS = random_tokens()


def found(model, rule, **options):
    return scales(model, rule, calibration=TOKENS[:2], **options)


def inputs(model, tokens=TOKENS[:1]):
    """Every norm's input, its shape only."""

    def run(tokens):
        context = Context(capture=True)
        model(tokens, context)
        return context.inputs

    return jax.eval_shape(run, tokens)


def shallow(placement):
    """A model of one block (two, so that both of Mix-LN's kinds are there) with all its norms."""
    also = {"mix-ln": {"post_share": 0.5}, "reordered": {"norm_qk_full": True}}.get(placement, {})
    turn = sorted(placements).index(placement) % 2
    kind, norm = (("gated", "rmsnorm"), ("plain", "layernorm"))[turn]
    layers = 2 if placement == "mix-ln" else 1
    return uneven(norm, placement, sites=EVERYWHERE | also, **KINDS[kind], layers=layers)


@pytest.fixture(scope="module")
def models():
    """A model for each placement; plain and gated, LayerNorm and RMSNorm take turns."""
    return {placement: shallow(placement) for placement in placements}


@pytest.mark.parametrize("rule", scale_rules)
@pytest.mark.parametrize("placement", EACH_PLACEMENT)
def test_every_rule_has_a_scale_for_every_site(models, placement, rule):
    sites, given = inputs(models[placement]), found(models[placement], rule)
    assert given.keys() == sites.keys()
    for site, x in sites.items():
        if callable(given[site]):
            shape = jax.eval_shape(given[site], x).shape
            assert shape == (*x.shape[:-1], 1)
        else:
            assert given[site].dtype == jnp.float32
            assert given[site].shape in ((), (x.shape[-2], 1)), site
            assert np.all(np.isfinite(given[site])), site
            assert np.all(np.asarray(given[site]) > 0), site


@pytest.mark.parametrize("norm", [name for name in norms if name not in STATISTICS])
def test_norms_without_a_statistic_get_no_scale(norm):
    model = uneven(norm, layers=1)
    assert all(found(model, rule) == {} for rule in scale_rules)


@partial(jax.jit, static_argnums=(0, 1, 2))
def outcome(graphdef, precision, observe, params, scale):
    context = Context(Precision.parse(precision), scale, observe=observe)
    return nnx.merge(graphdef, params)(TOKENS, context), context.observed


def run(model, scale, precision="fp32", observe=False):
    """A jitted pass, the scales among its arguments: logits, what the norms observed if asked."""
    graphdef, params = nnx.split(model)
    return outcome(graphdef, precision, observe, params, scale)


@pytest.mark.parametrize("placement", EACH_PLACEMENT)
def test_a_power_of_two_changes_no_bit(models, placement):
    model = models[placement]
    scale = found(model, "moments", pow2=True)
    assert sum(bool(np.any(s != 1)) for s in scale.values()) > len(scale) / 2
    precision = "fp32:sequential" if placement == "pre" else "fp32"
    plain = run(model, jax.tree.map(jnp.ones_like, scale), precision)[0]
    assert np.array_equal(run(model, scale, precision)[0], plain)


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound", "calibrated", "row_max"])
def test_any_scale_changes_only_rounding(rule):
    model = uneven("rmsnorm", "peri", sites=EVERYWHERE, **KINDS["gated"], layers=1)
    plain = run(model, {})[0]
    np.testing.assert_allclose(run(model, found(model, rule))[0], plain, rtol=1e-4, atol=1e-4)


def test_a_dynamic_scale_rounded_to_a_power_of_two_goes_through_jit():
    model = uneven("rmsnorm", "pre", **KINDS["gated"], layers=1)
    plain = run(model, {}, "fp32:sequential")[0]
    scale = found(model, "row_max", pow2=True)
    np.testing.assert_array_equal(run(model, scale, "fp32:sequential")[0], plain)


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound", "calibrated", "row_max"])
def test_scales_bring_an_overflowing_model_into_the_range_of_fp16(rule):
    model = uneven("rmsnorm", "pre", **KINDS["gated"], layers=1)
    model.embed.embedding[...] *= 1000
    count = lambda s: sum(int(o.overflowed) for o in run(model, s, "fp16", True)[1].values())  # noqa: E731
    assert count({}) > 0
    assert count(found(model, rule)) == 0


def test_rounding_to_a_power_of_two_is_to_the_nearest():
    s = np.float32([1e-6, 0.7, 0.71, 1.0, 1.41, 1.42, 3.0, 1000.0, 1e38])
    expected = 2.0 ** np.round(np.log2(s.astype(np.float64)))
    assert np.array_equal(power_of_two(jnp.asarray(s)), expected)


def test_pow2_rounds_what_a_rule_gives():
    model = uneven(**KINDS["gated"], sites=EVERYWHERE)
    for rule in ("slanc", "row_max"):
        exact, rounded = found(model, rule), found(model, rule, pow2=True)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 6)), jnp.float32)
        for site in exact:
            a, b = exact[site], rounded[site]
            a, b = (a(x), b(x)) if callable(a) else (a, b)
            assert np.array_equal(b, power_of_two(a))


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'moments'"):
        scales(uneven(), "moment")


def test_a_rule_that_looks_at_text_needs_some():
    assert [rule for rule in scale_rules if needs_calibration(rule)] == [
        "calibrated",
        "calibrated_max",
        "calibrated_mean",
    ]
    with pytest.raises(ValueError, match="calibration tokens"):
        scales(uneven(), "calibrated")
    with pytest.raises(ValueError, match=r"of shape \[5\]: expected windows of them, \[w, l\]"):
        scales(uneven(), "calibrated", calibration=jnp.arange(5))


def predicted(model, rule):
    """What a rule that walks the weights finds, before any cap."""
    return root_mean_squares(model) if rule == "moments" else scale_rules[rule](model)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for site in a:
        np.testing.assert_allclose(a[site], b[site], rtol=1e-4, err_msg=site)


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound"])
def test_a_factor_on_a_norms_output_is_a_smaller_gain(rule):
    lns, pre = (uneven(placement=name, **KINDS["gated"]) for name in ("lns", "pre"))
    for layer, block in enumerate(pre.blocks, start=1):
        for part in (block.attention, block.mlp):
            part.norm_in.gain[...] /= np.sqrt(layer)
    assert_same(predicted(lns, rule), predicted(pre, rule))


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound"])
def test_a_factor_on_the_stream_is_a_larger_sum_of_smaller_branches(rule):
    """αx + F(x) = α(x + F(x)/α)."""
    deep, post = (uneven(placement=name, **KINDS["gated"]) for name in ("deepnorm", "post"))
    alpha = deep.blocks[0].mlp.alpha
    for block in post.blocks:
        block.mlp.branch.down.kernel[...] /= alpha
        block.attention.branch.out.kernel[...] /= alpha
    expected = {site: alpha * np.asarray(s) for site, s in predicted(post, rule).items()}
    assert_same(predicted(deep, rule), expected)


@pytest.mark.parametrize(
    ("placement", "rule"),
    [(p, r) for p in ("normformer", "hybridnorm") for r in ("slanc", "moments")]
    + [("hybridnorm", "bound")],
)
def test_a_head_scale_belongs_to_what_reads_the_heads(placement, rule):
    scaled, folded = (uneven(placement=placement, heads=4, layers=1) for _ in range(2))
    factors = jnp.asarray([0.5, 2.0, 3.0, 0.1])
    scaled.blocks[0].attention.branch.head_scale = nnx.data(nnx.Param(factors))
    branch = folded.blocks[0].attention.branch
    branch.head_scale = None
    branch.out.kernel[...] *= jnp.repeat(factors, 6)[:, None]
    assert_same(predicted(scaled, rule), predicted(folded, rule))


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound"])
def test_what_a_norm_inside_a_branch_hides_is_not_seen_behind_it(rule):
    """W_V under sub-ln and hybridnorm: only the norm that reads the values sees its size."""
    for placement, reader in (("sub-ln", "norm_inner"), ("hybridnorm", "value.norm_v")):
        model, larger = (uneven(placement=placement, layers=1) for _ in range(2))
        larger.blocks[0].attention.branch.value.kernel[...] *= 7.0
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
    model = freeze(uneven("rmsnorm", "pre", layers=1), {"blocks.0.mlp.norm_in": 100.0})
    if rule in ("slanc", "slanc_code", "moments", "bound"):
        with pytest.raises(RuleDoesNotApply, match=r"blocks\.0\.mlp\.norm_in.*random_tokens"):
            found(model, rule)
    else:
        assert "norm_final" in found(model, rule)


def test_a_new_rule_is_a_registered_function(toy):
    toy["norm_final"] = 3.0
    assert scales(uneven(), "toy") == {"norm_final": 3.0}


def test_a_branch_of_zeros_has_scale_one():
    model = uneven(placement="peri", layers=1)
    model.blocks[0].mlp.branch.down.kernel[...] *= 0
    assert scales(model, "slanc")["blocks.0.mlp.norm_out"] == 1


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan, 1e39])
def test_a_scale_that_is_no_positive_number_is_refused(toy, bad):
    toy["norm_final"] = bad
    with pytest.raises(RuleDoesNotApply, match="toy at norm_final"):
        scales(uneven(), "toy")
