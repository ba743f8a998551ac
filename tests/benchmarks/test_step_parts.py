"""The parts of a training step that a benchmark takes one by one."""

from argparse import Namespace

import pytest
from step_parts import jax_parts, maps

SMALL = Namespace(layers=2, width=8, heads=2, context=4, vocabulary=16, batch=3)


def test_every_map_of_rows_is_counted():
    assert len(maps(Namespace(layers=6, width=384, vocabulary=8192))) == 37
    weights = sum(i * o for i, o in maps(SMALL))
    assert weights == 12 * SMALL.layers * SMALL.width**2 + SMALL.vocabulary * SMALL.width


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_part_runs_as_often_as_it_is_called(dtype):
    parts = jax_parts(SMALL, dtype, "xla")
    assert list(parts) == ["products", "attention", "gelu", "loss", "update"]
    for call in parts.values():
        call()
        call()
