"""What a norm stores and what it repeats, as XLA planned it."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from normlab.numerics import Accumulator
from normlab.numerics.orders import ALL_ORDERS

ORDERS = [o.replace("K", "16").replace("POSTFIX", "0_1_a") for o in ALL_ORDERS]
ROWS, D = 256, 768


def compiled(norm):
    return jax.jit(norm).lower(jax.ShapeDtypeStruct((ROWS, D), jnp.float32)).compile()


@functools.cache
def planned(text, center):
    return compiled(lambda x: Accumulator(text, 3.0).normalize(x, 1e-5, center=center))


def stored(program) -> float:
    """Bytes of temporary buffers, in inputs."""
    return program.memory_analysis().temp_size_in_bytes / (4 * ROWS * D)


def steps_of_an_element(program) -> int:
    """Instructions in the longest fused computation that makes a row-wide result."""
    wide = re.findall(rf"-> f32\[{ROWS},{D}\]\S* {{\n(.*?)\n}}", program.as_text(), re.S)
    return max(body.count("\n") for body in wide)


@pytest.mark.parametrize(
    "order", [pytest.param(o, marks=[] if o == "pairwise" else pytest.mark.system) for o in ORDERS]
)
def test_a_centred_norm_stores_no_row_and_repeats_no_add_of_its_sum(order):
    """No more than its own input, and for each element none of the last adds of its row's sum."""
    program = planned(f"fp16:{order}", center=True)
    assert stored(program) <= 1.0
    assert steps_of_an_element(program) < 80


@pytest.mark.extended
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("options", "center"),
    [("", False), (".onepass", True), (".input", True), (".mean.stochastic1", False)],
)
def test_no_more_than_the_norms_own_input(order, options, center):
    assert stored(planned(f"fp16{options}:{order}", center)) <= 1.0


@pytest.mark.system
def test_the_check_catches_a_row_that_is_stored():
    """The same one-pass norm, its rows kept for their return: two buffers more."""

    def keeps(x):
        acc = Accumulator("fp16.input:blocks16", 3.0)
        z = acc.held(acc.held(x) * (1.0 / jnp.float32(3.0)))
        added, squares = acc.mean(z), acc.sum_of_squares(z)
        return (z - added) * acc.inverse_rms(squares / D - added * added, 1e-5)

    assert stored(compiled(keeps)) > 1.0


@pytest.mark.system
def test_the_check_catches_a_sum_that_is_repeated(monkeypatch):
    monkeypatch.setattr(sys.modules["normlab.numerics.accumulate"], "once", lambda x: x)
    repeats = lambda x: Accumulator("fp16:exact_then_round", 3.0).normalize(x, 1e-5, center=True)  # noqa: E731
    assert steps_of_an_element(compiled(repeats)) > 160
