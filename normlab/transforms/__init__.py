"""Rewrites of a trained model in the space of its weights."""

from normlab.transforms.base import (
    AUTO,
    NOTHING,
    Chain,
    DoesNotApply,
    Transform,
    apply,
    check,
    parse,
    transforms,
)

__all__ = [
    "AUTO",
    "NOTHING",
    "Chain",
    "DoesNotApply",
    "Transform",
    "apply",
    "check",
    "parse",
    "transforms",
]
