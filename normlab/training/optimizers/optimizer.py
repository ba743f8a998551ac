"""The optimizer of one run: a pytree whose numbers are data of the program that takes it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from normlab.runs.names import to_names
from normlab.training.optimizers.base import OptimizerConfig, optimizers
from normlab.training.optimizers.groups import Groups, groups, is_hidden
from normlab.training.optimizers.schedule import rate

WHOLE = ("warmup", "steps")
"""Numbers that are whole."""
NO_NUMBERS = ("lr_width",)
"""Of which `hidden_rate` is made."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Optimizer:
    """Clipping, then an optimizer of some type.

    Runs that differ in its numbers alone share one program.

    Args:
        numbers: the numbers of the config, and `steps`, those of the whole run.
        type: its registered name.
        schedule: of the learning rate.
        decays: of each parameter in order, whether it decays.
        hidden: of each parameter in order, whether it is a matrix of a block.
        penalizes: whether there is a z-loss.
    """

    numbers: dict[str, Any]
    type: str = dataclasses.field(metadata={"static": True})
    schedule: str = dataclasses.field(metadata={"static": True})
    decays: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    hidden: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    penalizes: bool = dataclasses.field(metadata={"static": True})

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        return self._chain(params).init(params)

    def update(self, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """(what is added to `params`, the state after it)."""
        updates, state = self._chain(params).update(gradients, state, params)
        share = self.numbers["hidden_rate"]
        hidden = jax.tree.unflatten(jax.tree.structure(params), self.hidden)
        return jax.tree.map(lambda u, h: u * share if h else u, updates, hidden), state

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Learning rate of a step."""
        return rate(self.schedule, self.numbers, step)

    @property
    def z_loss(self) -> Float[Array, ""] | None:
        """The weight of the z-loss; None without one."""
        return self.numbers["z_loss"] if self.penalizes else None

    def _chain(self, params: Any) -> optax.GradientTransformation:
        structure = jax.tree.structure(params)
        told = Groups(*(jax.tree.unflatten(structure, part) for part in (self.decays, self.hidden)))
        made = optimizers[self.type].transformation(self.numbers, self.rate, told)
        return optax.chain(optax.clip_by_global_norm(self.numbers["clip"]), made)


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    params: Any,
    stacked: bool = False,
    width: int | None = None,
) -> Optimizer:
    """The optimizer of a run of `steps` steps.

    Args:
        config: of any type.
        steps: of the whole run.
        params: of a model.
        stacked: as in `groups`.
        width: of the model; None where `lr_width` is.
    """
    told = dataclasses.asdict(config) | {"steps": steps, "warmup": config.warmup_of(steps)}
    told["hidden_rate"] = config.lr_width / width if config.lr_width and width else 1.0
    plain = {k: v for k, v in told.items() if type(v) in (int, float) and k not in NO_NUMBERS}
    kinds = {k: np.int32 if k in WHOLE else np.float32 for k in plain}
    numbers = {k: np.asarray(v, kinds[k]) for k, v in plain.items()}
    found = groups(params, stacked, config.decay_norms)
    decays = tuple(group == "decay" for group in found.values())
    hidden = tuple(map(is_hidden, to_names(params)))
    return Optimizer(numbers, config.type, config.schedule, decays, hidden, config.z_loss > 0)
