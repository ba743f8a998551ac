"""The registry of scale rules: every rule serves every site, and a scale changes nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scaling_models import KINDS, random_tokens, uneven

from normlab.model import Context, placements
from normlab.norms import norms
from normlab.numerics import Precision
from normlab.registry import UnknownNameError
from normlab.scaling import needs_calibration, scale_rules, scales
from normlab.scaling.rules import power_of_two

STATISTICS = [name for name in norms if norms[name].has_statistic]
EVERYWHERE = {"norm_embed": True, "norm_qk": True}
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


@pytest.fixture(scope="module")
def models():
    """A model for each placement, sublayer kind and norm with a statistic."""
    return {
        (placement, kind, norm): uneven(norm, placement, sites=EVERYWHERE, **KINDS[kind], layers=1)
        for placement in placements
        for kind, norm in zip(KINDS, STATISTICS, strict=False)
    }


@pytest.mark.parametrize("rule", scale_rules)
def test_every_rule_has_a_scale_for_every_site(models, rule):
    for key, model in models.items():
        sites, given = inputs(model), found(model, rule)
        assert given.keys() == sites.keys(), key
        for site, x in sites.items():
            if callable(given[site]):
                shape = jax.eval_shape(given[site], x).shape
                assert shape == (*x.shape[:-1], 1)
            else:
                assert given[site].dtype == jnp.float32
                assert given[site].shape in ((), (x.shape[-2], 1)), (key, site)
                assert np.all(np.isfinite(given[site])), (key, site)
                assert np.all(np.asarray(given[site]) > 0), (key, site)


@pytest.mark.parametrize("rule", scale_rules)
@pytest.mark.parametrize("norm", [name for name in norms if name not in STATISTICS])
def test_norms_without_a_statistic_get_no_scale(norm, rule):
    assert found(uneven(norm, layers=1), rule) == {}


@partial(jax.jit, static_argnums=(0, 1))
def logits(graphdef, precision, params, scale):
    context = Context(Precision.parse(precision), scale, observe=True)
    return nnx.merge(graphdef, params)(TOKENS, context), context.observed


def run(model, scale, precision="fp32"):
    """A jitted pass, the scales among its arguments: logits, what the norms observed."""
    graphdef, params = nnx.split(model)
    return logits(graphdef, precision, params, scale)


@pytest.mark.parametrize(
    ("norm", "precision"), [("layernorm", "fp32"), ("rmsnorm", "fp32:sequential")]
)
def test_a_power_of_two_changes_no_bit(norm, precision):
    model = uneven(norm, "peri", sites=EVERYWHERE, **KINDS["plain"], layers=1)
    scale = found(model, "moments", pow2=True)
    assert sum(bool(np.any(s != 1)) for s in scale.values()) > len(scale) / 2
    plain = run(model, jax.tree.map(jnp.ones_like, scale), precision)[0]
    assert np.array_equal(run(model, scale, precision)[0], plain)


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound", "calibrated", "row_max"])
def test_any_scale_changes_only_rounding(rule):
    model = uneven("rmsnorm", "peri", sites=EVERYWHERE, **KINDS["gated"], layers=1)
    plain = run(model, {})[0]
    np.testing.assert_allclose(run(model, found(model, rule))[0], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["slanc", "moments", "bound", "calibrated", "row_max"])
def test_scales_bring_an_overflowing_model_into_the_range_of_fp16(rule):
    model = uneven("rmsnorm", "pre", **KINDS["gated"], layers=1)
    model.embed.embedding[...] *= 1000
    count = lambda s: sum(int(o.overflowed) for o in run(model, s, "fp16")[1].values())  # noqa: E731
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


@pytest.fixture
def toy():
    """A rule that a test fills in."""
    values = {}

    def rule(model):
        return values

    scale_rules.register("toy")(rule)
    yield values
    scale_rules.remove("toy")


def test_a_new_rule_is_a_registered_function(toy):
    toy["norm_final"] = 3.0
    assert scales(uneven(), "toy") == {"norm_final": 3.0}


def test_a_branch_of_zeros_has_scale_one():
    model = uneven(placement="peri", layers=1)
    model.blocks[0].mlp.branch.down.kernel[...] *= 0
    assert scales(model, "slanc")["blocks.0.mlp.norm_out"] == 1


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan])
def test_a_scale_that_is_no_positive_number_is_refused(toy, bad):
    toy["norm_final"] = bad
    with pytest.raises(ValueError, match="toy at norm_final"):
        scales(uneven(), "toy")
