"""Rewrites of a trained model in the space of its weights."""

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
