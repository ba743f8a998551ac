"""What a norm stores and what it repeats, as XLA planned it."""

import re
import sys

import jax
import jax.numpy as jnp
import pytest

from normlab.numerics import Accumulator
from normlab.numerics.orders import ALL_ORDERS

ORDERS = [o.replace("(k)", "(16)") for o in ALL_ORDERS]
QUICK = ("sequential", "pairwise")
ROWS, D = 256, 768


def stored(norm) -> float:
    """Bytes of temporary buffers, in inputs."""
    x = jax.ShapeDtypeStruct((ROWS, D), jnp.float32)
    return jax.jit(norm).lower(x).compile().memory_analysis().temp_size_in_bytes / (4 * ROWS * D)


def norm(text, center, scale=3.0):
    return lambda x: Accumulator(text, scale).normalize(x, 1e-5, center=center)


@pytest.mark.parametrize(
    "order",
    [pytest.param(o, marks=[] if o in QUICK else pytest.mark.system) for o in ORDERS],
)
@pytest.mark.parametrize(
    ("options", "center"),
    [("", False), ("", True), (".onepass", True), (".input", True), (".mean.stochastic(1)", False)],
)
def test_no_more_than_the_norms_own_input(order, options, center):
    assert stored(norm(f"fp16{options}:{order}", center)) <= 1.0


def test_the_check_catches_a_row_that_is_stored():
    """The same one-pass norm, its rows kept for their return: two buffers more."""

    def keeps(x):
        acc = Accumulator("fp16.input:blocks(16)", 3.0)
        z = acc.held(acc.held(x) * (1.0 / jnp.float32(3.0)))
        added, squares = acc.mean(z), acc.sum_of_squares(z)
        return (z - added) * acc.inverse_rms(squares / D - added * added, 1e-5)

    assert stored(keeps) > 1.0


def steps_of_an_element(norm) -> int:
    """Instructions in the longest fused computation that makes a row-wide result."""
    x = jax.ShapeDtypeStruct((ROWS, D), jnp.float32)
    text = jax.jit(norm).lower(x).compile().as_text()
    wide = re.findall(rf"-> f32\[{ROWS},{D}\]\S* {{\n(.*?)\n}}", text, re.S)
    return max(body.count("\n") for body in wide)


@pytest.mark.parametrize("order", ORDERS)
def test_an_element_does_not_repeat_the_last_adds_of_its_rows_sum(order):
    assert steps_of_an_element(norm(f"fp16:{order}", center=True)) < 80


def test_the_check_catches_a_sum_that_is_repeated(monkeypatch):
    monkeypatch.setattr(sys.modules["normlab.numerics.accumulate"], "once", lambda x: x)
    assert steps_of_an_element(norm("fp16:rounded", center=True)) > 160
