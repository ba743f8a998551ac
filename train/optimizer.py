"""AdamW: schedule, clipping, and which parameters decay."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax

from normlab.checkpoint import to_names
from normlab.config import check, knob

MATRICES = ("kernel", "embedding")
"""Names of the parameters that are matrices of the model: the ones that decay."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with warm-up and cosine decay."""

    lr: float = knob(1e-3, "peak learning rate")
    final_lr: float = knob(0.1, "learning rate behind the last step, as a share of the peak")
    warmup: int = knob(100, "steps of linear warm-up from 0")
    weight_decay: float = knob(0.1, "decoupled weight decay, on matrices only")
    beta1: float = knob(0.9, "decay of the first moment")
    beta2: float = knob(0.95, "decay of the second moment")
    eps: float = knob(1e-8, "added to the root of the second moment")
    clip: float = knob(1.0, "largest global norm of the gradient; larger ones are scaled down")

    def __post_init__(self) -> None:
        finite = 0 < self.lr < math.inf
        check(finite, f"optimizer.lr = {self.lr}: expected a finite number > 0, such as 1e-3")
        check(0 <= self.final_lr <= 1, f"optimizer.final_lr = {self.final_lr}: expected 0 … 1")
        check(self.warmup >= 0, f"optimizer.warmup = {self.warmup}: expected a number ≥ 0 of steps")
        check(
            self.weight_decay >= 0,
            f"optimizer.weight_decay = {self.weight_decay}: expected a number ≥ 0, such as 0.1",
        )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optimizer.{name} = {value}: expected 0 ≤ β < 1, such as 0.9")
        check(self.eps > 0, f"optimizer.eps = {self.eps}: expected a number > 0, such as 1e-8")
        check(self.clip > 0, f"optimizer.clip = {self.clip}: expected a number > 0, such as 1.0")


def group(path: str, leaf: jax.Array, stacked: bool = False) -> str:
    """The one group that a parameter belongs to: "decay" or "no_decay".

    Matrices of linear maps and embeddings decay. Gains, biases, DyT's α, branch gains and embedding
    scales do not: pulling them to zero is no regularization but another model.

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
        stacked: they are a stacked model's (`train.stacked`).
    """
    return {path: group(path, leaf, stacked) for path, leaf in to_names(params).items()}


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Any, stacked: bool = False
) -> optax.GradientTransformation:
    """Clipping, then AdamW, for a run of `steps` steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup else config.lr,
        peak_value=config.lr,
        warmup_steps=config.warmup,
        decay_steps=steps,
        end_value=config.final_lr * config.lr,
    )
    decays = [name == "decay" for name in groups(params, stacked).values()]
    mask = jax.tree.unflatten(jax.tree.structure(params), decays)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=mask,
        ),
    )
