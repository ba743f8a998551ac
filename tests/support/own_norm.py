"""A norm in a file of a user's own."""

OWN = '''
"""A norm of my own."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from normlab.config import field
from normlab.norms import Norm, NormConfig, norms

TINY = 1e-6


@dataclass(frozen=True)
class OwnConfig(NormConfig):
    """What it can be told."""

    type: str = field("own", "norm type")
    use_weight: bool = field(True, "a weight")
    power: float = field(1.0, "exponent of the divisor")


@norms.register("own")
class Own(Norm):
    """y = x / (mean |x| + 1e-6)^p (arXiv:0000.00000)."""

    Config = OwnConfig
    has_statistic = False

    @staticmethod
    def reference(x, config, params):
        size = np.abs(x).mean(-1, keepdims=True) + TINY
        return params["weight"] * x / size**config.power

    def __call__(self, x, context):
        return self.affine(x / divisor(x, self.config.power), x, context)  # the whole of it


def divisor(x, power):
    return (jnp.abs(x).mean(-1, keepdims=True) + TINY) ** power


def unused(x):
    return x
'''
