"""Weight-space rewrites of a trained model that leave what it computes as it is, or nearly so."""

from normlab.transforms.base import (
    NOTHING,
    Chain,
    DoesNotApply,
    Transform,
    apply,
    parse,
    transforms,
)

__all__ = ["NOTHING", "Chain", "DoesNotApply", "Transform", "apply", "parse", "transforms"]
