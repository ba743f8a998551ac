"""Optimizers over optax: one registered config for each type, the schedule, and who decays."""

from normlab.training.optimizers.base import OptimizerConfig, optimizers
from normlab.training.optimizers.groups import groups
from normlab.training.optimizers.optimizer import Optimizer, make_optimizer

__all__ = ["Optimizer", "OptimizerConfig", "groups", "make_optimizer", "optimizers"]
