"""Whether a norm's output depends on its scale: no norm's here does, a wrong one is refused."""

import dataclasses

import jax.numpy as jnp
import pytest

from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import Norm, NormConfig, norms
from normlab.scaling import scales
from normlab.scaling.invariance import check_invariant

CONFIG = ModelConfig(layers=1, width=16, heads=2, max_length=32)


def model(norm):
    return Transformer(CONFIG, norms[norm].Config(), PlacementConfig(), 20)


@pytest.mark.parametrize("name", norms)
def test_every_registered_norm_passes(name):
    check_invariant(model(name))


@pytest.fixture
def registered():
    """Registers a norm of a function (norm, x, acc) for one test."""
    made = []

    def register(called, **fields):
        @dataclasses.dataclass(frozen=True)
        class Config(NormConfig):
            type: str = "toy"
            eps: float = 1e-6

        members = {"Config": Config, "__call__": called, **fields}
        norms.register("toy")(type("Toy", (Norm,), members))
        made.append("toy")

    yield register
    for name in made:
        norms.remove(name)


def fourth_powers(norm, x, acc):
    _, fourth = acc.moments(x * x)
    return x * (fourth + norm.config.eps) ** -0.25


def unscaled_row(norm, x, acc):
    return x * acc.inverse_rms(acc.moments(x)[1], norm.config.eps)


def eps_as_it_is(norm, x, acc):
    z, square = acc.moments(x)
    return z / jnp.sqrt(square + norm.config.eps)


def infinite(norm, x, acc):
    return acc.normalize(x, 0.0) * jnp.where(jnp.float32(acc.scale) > 1, jnp.nan, 1.0)


@pytest.mark.parametrize("called", [fourth_powers, unscaled_row, eps_as_it_is, infinite])
def test_a_norm_that_depends_on_its_scale_is_refused(registered, called):
    registered(called)
    message = r"norm 'toy' \(blocks.0.attention.norm_in\): .*\(s = 8 moves it by"
    with pytest.raises(ValueError, match=message) as e:
        scales(model("toy"), "slanc")
    assert str(e.value).count("\n") == 1
    assert "docs/howto/add-a-norm.md" in str(e.value)


def test_a_norm_that_cannot_be_called_is_not_taken_for_one_that_moves_by_nothing(registered):
    def wrong(norm, x, acc):
        raise ValueError("the norm's own words")

    registered(wrong)
    with pytest.raises(ValueError, match="the norm's own words"):
        scales(model("toy"), "slanc")


def fourth_powers_undone(norm, x, acc):
    _, fourth = acc.moments(x * x)
    return x * (fourth * acc.scale**2 + norm.config.eps) ** -0.25


def normalized(norm, x, acc):
    return acc.normalize(x, norm.config.eps)


@pytest.mark.parametrize("called", [fourth_powers_undone, normalized])
def test_a_norm_that_does_not_is_taken(registered, called):
    registered(called)
    assert scales(model("toy"), "slanc")


def test_without_a_statistic_there_is_no_scale_to_depend_on(registered):
    registered(lambda norm, x, acc: x / acc.scale, has_statistic=False)
    assert scales(model("toy"), "slanc") == {}
