"""What normalizes: one registered class for each type."""

from normlab.norms.base import (
    Norm,
    NormConfig,
    NormState,
    Site,
    all_norms,
    check_sums,
    norms,
    nothing_summed,
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
    "check_sums",
    "norms",
    "nothing_summed",
    "observe",
    "penalties",
]
