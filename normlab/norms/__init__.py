"""What normalizes: one registered class for each type."""

from normlab.norms.base import (
    Norm,
    NormConfig,
    NormState,
    Site,
    all_norms,
    norms,
    observe,
    penalties,
)
from normlab.norms.context import NormContext

__all__ = [
    "Norm",
    "NormConfig",
    "NormContext",
    "NormState",
    "Site",
    "all_norms",
    "norms",
    "observe",
    "penalties",
]
