"""Layers kept in one stack, so that one block is compiled for all of them, and taken apart again.

In a stacked model `blocks` has one block, each of whose arrays bears the layers on a first axis.
What is saved is never stacked: who reads a checkpoint need not know which kind of run wrote it. A
run itself goes on as the kind that it began as, for `compute.scan_layers` is part of what it is.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normlab.config import require
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.model.placement import SUBLAYERS
from normlab.parallel.sharding import shard_params
from normlab.runs.names import from_names, to_names

_LAYER = re.compile(r"(?:^|(?<=\.))blocks\.(\d+)\.")


def check_alike(model: ModelConfig, placement: PlacementConfig) -> None:
    """Raise `ValueError` where two layers differ in more than their weights."""

    def kind(layer: int) -> tuple[Any, ...]:
        residuals = (placement.residual(s, layer, model.layers) for s in SUBLAYERS)
        return (*residuals, model.local(layer))

    odd = next((i for i in range(model.layers) if kind(i) != kind(0)), None)
    require(
        odd is None,
        f"compute.scan_layers = True compiles one block for all layers, but with "
        f"placement={placement.type} and model.window={model.window} block {odd} is another kind "
        "than block 0: expected layers that are alike, or compute.scan_layers=false",
    )


class Layers:
    """How a run keeps its model's layers: one by one, or in one stack.

    Args:
        model: as it was made, its layers one by one.
        scan: keep them in one stack.

    Raises:
        ValueError: a stack was asked for, and the layers are not alike.
    """

    def __init__(self, model: Transformer, scan: bool):
        self.graphdef, params = nnx.split(model)
        self._like = jax.eval_shape(lambda: params)
        self._stacked = model.config.layers if scan else None
        self.model = stacked(model) if scan else model

    def saved(self, tree: Any) -> Any:
        """Parameters, or an optimizer's state, as they are saved: layer by layer."""
        return tree if self._stacked is None else unstack(tree, self._stacked)

    def loaded(self, tree: Any, like: Any) -> Any:
        """What was saved, as the run keeps it; `like` is a tree of that kind."""
        return tree if self._stacked is None else stack(tree, like)

    def apart(self, params: Any) -> Any:
        """The state of a model with its layers one by one, whose structure is `graphdef`."""
        return params if self._stacked is None else from_names(self.saved(params), self._like)


def stacked(model: Transformer) -> Transformer:
    """The same model with its layers in one stack.

    Raises:
        ValueError: its layers are not alike.
    """
    check_alike(model.config, model.placement)
    graphdef, params = nnx.split(model)
    model = nnx.merge(graphdef, params, copy=True)
    states = [nnx.state(block) for block in model.blocks]
    nnx.update(
        model.blocks[0], shard_params(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    )
    model.blocks, model.stacked = nnx.List([model.blocks[0]]), True
    return model


def unstacked(model: Transformer) -> Transformer:
    """A stacked model with its layers one by one; another model as it is."""
    if not model.stacked:
        return model
    shape = nnx.eval_shape(
        lambda: Transformer(
            model.config, model.norm, model.placement, model.embed.num_embeddings, 0
        )
    )
    graphdef, like = nnx.split(shape)
    return nnx.merge(graphdef, from_names(unstack(nnx.state(model), model.config.layers), like))


def unstack(tree: Any, layers: int) -> dict[str, jax.Array]:
    """The arrays of a stacked model's parameters, or of an optimizer's state, by unstacked name."""
    names: dict[str, jax.Array] = {}
    for name, array in to_names(tree).items():
        if _LAYER.search(name):
            names |= {_LAYER.sub(f"blocks.{i}.", name): array[i] for i in range(layers)}
        else:
            names[name] = array
    return names


def stack(names: dict[str, Any], like: Any) -> Any:
    """The tree shaped as the stacked `like` whose arrays `unstack` would give as `names`."""
    layers: dict[str, list[Any]] = {}
    for name in sorted(names, key=_layer):
        layers.setdefault(_LAYER.sub("blocks.0.", name), []).append(names[name])
    whole = {n: jnp.stack(a) if _LAYER.search(n) else a[0] for n, a in layers.items()}
    return from_names(whole, like)


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else 0
