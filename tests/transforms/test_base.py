"""Naming transforms: what is read, what is refused before any model is there."""

import dataclasses

import pytest
from flax import nnx

from normlab.norms import norms
from normlab.registry import MethodCard
from normlab.transforms import DoesNotApply, Transform, apply, parse, transforms
from normlab.transforms.surgery import in_place
from tests.conftest import same_trees, tiny_model
from tests.support.transform_models import bits


@pytest.mark.parametrize(
    ("text", "shown", "steps"),
    [
        ("none", "none", 0),
        ("fold", "fold", 1),
        (" recentre + rescale( 0.250 ) ", "recentre+rescale:0.25", 2),
        ("rescale:1e2", "rescale:100", 1),
        ("rmsnorm+fold", "rmsnorm+fold", 2),
    ],
)
def test_a_chain_is_read_and_printed(text, shown, steps):
    chain = parse(text)
    assert (str(chain), len(chain.steps)) == (shown, steps)
    assert parse(str(chain)) == chain or "rmsnorm" in text  # a partial equals only itself
    assert str(parse(str(chain))) == str(chain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folt", r"transform 'folt'.*Did you mean 'fold'"),
        ("layernrm", r"transform 'layernrm'.*Did you mean 'layernorm'"),
        ("fold+recenter", r"transform 'recenter'.*Did you mean 'recentre'"),
        ("", r"transform ''"),
        ("fold+none", r"transform 'none'"),
        ("rescale", r"'rescale': expected rescale:c"),
        ("rescale:1:2", r"expected rescale:c"),
        ("rescale(x)", r"expected numbers, rescale:c"),
        ("fold(1)", r"'fold\(1\)': expected fold"),
        ("rmsnorm(1)", "a norm type takes no arguments"),
        ("rescale:0", r"rescale\(0\): expected a factor > 0"),
        ("rescale(inf)", r"rescale\(inf\): expected a factor > 0"),
        ("rescale(2", r"transform 'rescale\(2'"),
    ],
)
def test_bad_chains_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_steps_act_from_left_to_right():
    model = tiny_model("layernorm")
    assert apply(model, "recentre+fold").norm_final.config.type == "rmsnorm"
    with pytest.raises(DoesNotApply, match="expected a LayerNorm"):
        apply(model, "recentre+recentre")
    assert apply(model, "none") is model


def test_a_norm_type_swaps():
    model = tiny_model("layernorm")
    before = bits(model)
    assert type(apply(model, "l1").norm_final) is norms["l1"]
    assert bits(model) == before


@pytest.mark.parametrize("name", transforms)
def test_every_transform_says_what_it_is(name):
    kind = transforms[name]
    assert issubclass(kind, Transform)
    assert isinstance(kind.card, MethodCard)
    assert kind.card.title
    assert all(f.type in (float, "float") for f in dataclasses.fields(kind))
    assert name not in norms


def test_in_place_the_model_itself_becomes_what_a_copy_would():
    chain = "recentre+rescale:0.25+fold"
    expected = apply(tiny_model("layernorm"), chain)
    model = tiny_model("layernorm")
    with in_place():
        assert apply(model, chain) is model
    assert same_trees(nnx.state(model), nnx.state(expected))
    assert apply(model, "rescale:4") is not model
