"""AdamW: schedule, clipping, and which parameters decay."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from normlab.config import field, require
from normlab.runs.checkpoint import to_names

MATRICES = ("kernel", "embedding")
"""Names of the parameters that are matrices of the model: the ones that decay."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with warm-up and cosine decay."""

    lr: float = field(1e-3, "peak learning rate")
    final_lr: float = field(0.1, "learning rate after the last step, as a share of the peak")
    warmup: int = field(100, "steps of linear warm-up from 0")
    weight_decay: float = field(0.1, "decoupled weight decay, on matrices only")
    beta1: float = field(0.9, "decay of the first moment")
    beta2: float = field(0.95, "decay of the second moment")
    eps: float = field(1e-8, "added to the root of the second moment")
    clip: float = field(1.0, "largest global norm of the gradient; larger ones are scaled down")

    def __post_init__(self) -> None:
        finite = 0 < self.lr < math.inf
        require(finite, f"optimizer.lr = {self.lr}: expected a finite number > 0, such as 1e-3")
        require(0 <= self.final_lr <= 1, f"optimizer.final_lr = {self.final_lr}: expected 0 … 1")
        require(
            self.warmup >= 0, f"optimizer.warmup = {self.warmup}: expected a number ≥ 0 of steps"
        )
        require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay = {self.weight_decay}: expected a number ≥ 0, such as 0.1",
        )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} = {value}: expected 0 ≤ β < 1, such as 0.9")
        require(self.eps > 0, f"optimizer.eps = {self.eps}: expected a number > 0, such as 1e-8")
        require(self.clip > 0, f"optimizer.clip = {self.clip}: expected a number > 0, such as 1.0")


def group(path: str, leaf: jax.Array, stacked: bool = False) -> str:
    """The one group that a parameter belongs to: "decay" or "no_decay".

    Matrices of linear maps and embeddings decay. Norm weights, biases, DyT's α, branch gains and
    embedding scales do not: pulling them to zero is no regularization but another model.

    Raises:
        ValueError: a parameter that neither rule knows, such as a norm's matrix.
    """
    matrix = path.rsplit(".", 1)[-1] in MATRICES
    layers = 1 if stacked and path.startswith("blocks.") else 0  # an axis that is no matrix's
    if matrix != (leaf.ndim - layers == 2):
        raise ValueError(
            f"parameter {path} of shape {leaf.shape} falls in no optimizer group: expected a "
            f"matrix named {' or '.join(MATRICES)}, or a vector or scalar of another name"
        )
    return "decay" if matrix else "no_decay"


def groups(params: Any, stacked: bool = False) -> dict[str, str]:
    """Each parameter's group by path; every parameter falls in exactly one.

    Args:
        params: of a model.
        stacked: they are a stacked model's (`normlab.training.stacked`).
    """
    return {path: group(path, leaf, stacked) for path, leaf in to_names(params).items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdamW:
    """Clipping, then AdamW: a pytree, whose numbers are data of the program that takes it.

    Runs that differ in them alone share one program.

    Args:
        numbers: the fields of `OptimizerConfig`, and `steps`, those of the whole run.
        decays: of each parameter in order, whether it decays.
    """

    numbers: dict[str, Any]
    decays: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        return self._chain(params).init(params)

    def update(self, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """(what is added to `params`, the state after it)."""
        return self._chain(params).update(gradients, state, params)

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Learning rate of a step: linear warm-up from 0, then a cosine down to its share."""
        n = self.numbers
        share = n["final_lr"]
        done = jnp.clip((step - n["warmup"]) / (n["steps"] - n["warmup"]), 0.0, 1.0)
        cosine = share + (1.0 - share) * 0.5 * (1.0 + jnp.cos(math.pi * done))
        warm = step / jnp.maximum(n["warmup"], 1)
        return n["lr"] * jnp.where(step < n["warmup"], warm, cosine)

    def _chain(self, params: Any) -> optax.GradientTransformation:
        n = self.numbers
        mask = jax.tree.unflatten(jax.tree.structure(params), self.decays)
        return optax.chain(
            optax.clip_by_global_norm(n["clip"]),
            optax.adamw(
                self.rate,
                b1=n["beta1"],
                b2=n["beta2"],
                eps=n["eps"],
                weight_decay=n["weight_decay"],
                mask=mask,
            ),
        )


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Any, stacked: bool = False
) -> AdamW:
    """The optimizer of a run of `steps` steps; `stacked` as in `groups`."""
    told = dataclasses.asdict(config) | {"steps": steps}
    whole = ("warmup", "steps")
    numbers = {k: np.asarray(v, np.int32 if k in whole else np.float32) for k, v in told.items()}
    return AdamW(numbers, tuple(g == "decay" for g in groups(params, stacked).values()))
