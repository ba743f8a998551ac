"""What a norm should give, by the reference beside its class."""

import numpy as np
from flax import nnx

from normlab.norms import reference as ref


def parameters(norm):
    """What the norm stores, by name, in float64."""
    flat = nnx.to_flat_state(nnx.state(norm))
    return {path[-1]: np.array(variable[...], np.float64) for path, variable in flat}


def reference(norm, x, params=None):
    """The rows x by the norm's own reference, with its parameters or those given."""
    params = parameters(norm) if params is None else params
    return type(norm).reference(np.float64(x), norm.config, params)


def exact(config, x):
    """LayerNorm or RMSNorm without its parameters, in float64."""
    return ref.over_rms(ref.centred(np.float64(x), config), config)
