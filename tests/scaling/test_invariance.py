"""Whether a norm's output depends on its scale: no norm's here does, a wrong one is refused."""

import dataclasses
from itertools import count

import jax.numpy as jnp
import pytest

from normlab.norms import Norm, NormConfig, norms
from normlab.scaling import scales
from normlab.scaling.invariance import check_invariant
from tests.conftest import tiny_model

FIRST = ("rmsnorm", "layernorm", "groupnorm", "bhyt-estimated")


@pytest.mark.parametrize(
    "name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.system) for n in norms]
)
def test_every_registered_norm_passes(name):
    """That each is its formula with a static scale too: tests/norms/test_walk.py."""
    check_invariant(tiny_model(name))


NUMBERS = count()


@pytest.fixture
def registered():
    """A model whose norm is a function (norm, x, context), registered for one test."""
    made = []

    def register(called, **fields):
        name = f"toy-{next(NUMBERS)}"  # `tiny_model` remembers names

        @dataclasses.dataclass(frozen=True)
        class Config(NormConfig):
            type: str = name
            eps: float = 1e-6

        members = {"Config": Config, "__call__": called, **fields}
        norms.register(name)(type("Toy", (Norm,), members))
        made.append(name)
        return tiny_model(name)

    yield register
    for name in made:
        norms.remove(name)


def fourth_powers(norm, x, context):
    acc = context.acc
    _, fourth = acc.moments(x * x)
    return x * (fourth + norm.config.eps) ** -0.25


def unscaled_row(norm, x, context):
    acc = context.acc
    return x * acc.inverse_rms(acc.moments(x)[1], norm.config.eps)


def eps_as_it_is(norm, x, context):
    acc = context.acc
    z, square = acc.moments(x)
    return z / jnp.sqrt(square + norm.config.eps)


def infinite(norm, x, context):
    acc = context.acc
    return acc.normalize(x, 0.0) * jnp.where(jnp.float32(acc.scale) > 1, jnp.nan, 1.0)


@pytest.mark.parametrize("called", [fourth_powers, unscaled_row, eps_as_it_is, infinite])
def test_a_norm_that_depends_on_its_scale_is_refused(registered, called):
    model = registered(called)
    message = r"norm 'toy-\d+' \(blocks.0.attention.norm_in\): .*\(s = 8 moves it by"
    with pytest.raises(ValueError, match=message) as e:
        scales(model, "slanc")
    assert str(e.value).count("\n") == 1
    assert "docs/howto/add-a-norm.md" in str(e.value)


def test_a_norm_that_cannot_be_called_is_not_taken_for_one_that_moves_by_nothing(registered):
    def wrong(norm, x, context):
        raise ValueError("the norm's own words")

    model = registered(wrong)
    with pytest.raises(ValueError, match="the norm's own words"):
        scales(model, "slanc")


def fourth_powers_undone(norm, x, context):
    acc = context.acc
    _, fourth = acc.moments(x * x)
    return x * (fourth * acc.scale**2 + norm.config.eps) ** -0.25


def normalized(norm, x, context):
    return context.acc.normalize(x, norm.config.eps)


@pytest.mark.parametrize("called", [fourth_powers_undone, normalized])
def test_a_norm_that_does_not_is_taken(registered, called):
    model = registered(called)
    assert scales(model, "slanc")


def test_without_a_statistic_there_is_no_scale_to_depend_on(registered):
    model = registered(lambda norm, x, context: x / context.acc.scale, has_statistic=False)
    assert scales(model, "slanc") == {}
