"""Static scales for the inputs of norms: one registered rule each."""

from normlab.scaling.invariance import RuleDoesNotApply
from normlab.scaling.rules import Rule, Scale, needs_calibration, scale_rules, scales

__all__ = ["Rule", "RuleDoesNotApply", "Scale", "needs_calibration", "scale_rules", "scales"]
