"""Checkpoints of a training run: the only file that knows Orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

Tree = Any
_policies = ocp.training.preservation_policies


def to_names(tree: Tree) -> dict[str, Any]:
    """Any pytree as a flat dictionary of its leaves by path, the form in which it is stored."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    # An nnx.Variable is a node with one child; whether its leaf has a step of its own in the path,
    # and what it is called, is flax's affair and not part of a stored name.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def from_names(names: dict[str, Any], like: Tree) -> Tree:
    """The pytree shaped `like`, its leaves taken from a dictionary that `to_names` made."""
    return jax.tree.unflatten(jax.tree.structure(like), [names[k] for k in to_names(like)])


def _merit(metrics: Any) -> float:
    return -float(metrics["valid_loss"])


class Checkpoints:
    """The checkpoints in one directory: the newest and the best by validation loss are kept.

    Saving runs in the background and is atomic: a directory without its commit mark is none. Use it
    as a context manager; leaving it waits for what is under way.

    Args:
        directory: made where it isn't there.
        writer: this process trains here, and sweeps away what a killed one left half-written. A
            reader must not: what it finds half-written may be another process's save.
    """

    def __init__(self, directory: Path, writer: bool = False):
        keep = [_policies.LatestN(1), _policies.BestN(get_metric_fn=_merit, n=1)]
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=writer,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation loss."""
        found = self._checkpointer.checkpoints
        return max(found, key=lambda c: _merit(c.metrics)).step if found else None

    def save(self, step: int, params: Tree, optimizer: Tree, valid_loss: float) -> None:
        """Save both trees under `step`.

        Raises:
            RuntimeError: Orbax did not take it.
        """
        trees = {"params": to_names(params), "optimizer": to_names(optimizer)}
        response = self._checkpointer.save_checkpointables_async(
            step, trees, metrics={"valid_loss": valid_loss}
        )
        if response is None:
            raise RuntimeError(f"the checkpoint of step {step} was not saved")

    def load(self, step: int, **like: Tree) -> dict[str, Tree]:
        """The trees saved at `step` ("params", "optimizer"), each shaped as the keyword says."""
        abstract = {name: _abstract(to_names(tree)) for name, tree in like.items()}
        loaded = self._checkpointer.load_checkpointables(step, abstract)
        return {name: from_names(loaded[name], tree) for name, tree in like.items()}


def _abstract(names: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        k: jax.ShapeDtypeStruct(
            np.shape(v), v.dtype, sharding=getattr(v, "sharding", None) or device
        )
        for k, v in names.items()
    }
