"""What normalizes: one registered class for each type."""

from normlab.norms.base import Norm, NormConfig, NormState, Site, all_norms, norms, penalties

__all__ = ["Norm", "NormConfig", "NormState", "Site", "all_norms", "norms", "penalties"]
