"""KL against float64, near and far."""

import jax
import numpy as np
import pytest

from normlab.evaluation.kl import NEAR, kl_divergence

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (8, 500)).astype(np.float32)
kl = jax.jit(kl_divergence)


def exact(a, b) -> np.ndarray:
    a, b = np.float64(a), np.float64(b)
    logp, logq = (x - x.max(-1, keepdims=True) for x in (a, b))
    logp, logq = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logp, logq))
    return (np.exp(logp) * (logp - logq)).sum(-1)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1000.0])
def test_it_is_that_of_float64(noise):
    other = (LOGITS + noise * RNG.normal(size=LOGITS.shape)).astype(np.float32)
    want = exact(LOGITS, other)
    np.testing.assert_allclose(kl(LOGITS, other), want, rtol=2e-2 if noise < 1e-3 else 1e-3)


def test_both_ways_of_computing_it_are_used():
    spread = [exact(LOGITS, LOGITS + s * LOGITS[::-1]) for s in (0.01, 1.0)]
    assert spread[0].max() < NEAR < spread[1].min()


def test_a_shift_of_all_logits_is_no_difference():
    assert np.abs(kl(LOGITS, LOGITS)).max() == 0
    assert np.abs(kl(LOGITS, LOGITS + np.float32(8))).max() < 1e-9


def test_flat_and_impossible():
    gone = np.float32([[0, -300]]), np.float32([[0, -150]])  # e^150 is no float32
    assert kl(*gone) == 0
    flat = np.zeros_like(LOGITS)
    np.testing.assert_allclose(kl(LOGITS, flat), exact(LOGITS, flat), rtol=1e-5)
    assert np.isnan(kl(LOGITS, np.full_like(LOGITS, np.nan))).all()
