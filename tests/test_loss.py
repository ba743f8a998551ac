import jax
import numpy as np

from normlab.loss import token_nll


def test_it_is_minus_the_log_probability_in_nats():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 5, (3, 4, 11)), rng.integers(0, 11, (3, 4))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logs, targets[..., None], -1)[..., 0]
    found = jax.jit(token_nll)(np.float32(logits), targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
