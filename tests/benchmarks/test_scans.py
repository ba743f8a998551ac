"""The forms of benchmarks/scans.py: as many passes as it says, and the same result."""

import jax.numpy as jnp
import numpy as np
import pytest
import scans

GIVEN = (
    jnp.float32(np.random.default_rng(0).normal(0.3, 2.0, (8, 64))),
    jnp.float32(1.5),
    jnp.float32(-0.25),
)


def exact():
    x, gain, bias = (np.float64(part) for part in GIVEN)
    z = x - x.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + scans.EPS) * gain + bias


@pytest.mark.parametrize("name", [*scans.FORMS, "xla"])
def test_every_form_gives_the_same_within_three_ulps(name):
    got, wanted = np.asarray(scans.variants()[name](*GIVEN)), exact()
    # In ulps of the row's largest element: an element near zero is a difference of larger ones.
    # The fused form's reduction is sequential on a CPU; at d = 256 it is off by more.
    ulp = np.spacing(np.float32(np.abs(wanted).max(-1, keepdims=True)))
    assert (np.abs(got - wanted) <= 3 * ulp).all()


def test_the_faster_tail_saves_no_pass_and_the_fused_form_saves_three():
    passes = {name: len(form) for name, form in scans.FORMS.items()}
    assert passes["five-scan"] == passes["faster tail"] == 5
    assert passes["fused"] == 2
    moved = {name: scans.bytes_accessed(name, GIVEN) for name in scans.FORMS}
    assert moved["fused"] < moved["two-pass statistic"] < moved["five-scan"]
    assert moved["faster tail"] == pytest.approx(moved["five-scan"], rel=0.02)
