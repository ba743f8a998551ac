"""A model's weights as the tensors of a format: names, shapes, and values one tensor at a time."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from normlab.model import ModelConfig, Transformer
from normlab.parallel.sharding import dotted, on_host
from normlab.pretrained.names import Names, Shape, Stored


@dataclass(frozen=True)
class Tensor:
    """One stored tensor, made of our weights when it is asked for.

    Args:
        name: as the file spells it.
        shape: slowest axis first.
        parts: our weights in it, and how each is stored there; none: zeros.
    """

    name: str
    shape: Shape
    parts: tuple[tuple[Stored, Any], ...] = ()

    def values(self) -> Float[np.ndarray, "..."]:
        """In float32; a new array, that no model holds."""
        made = np.zeros(self.shape, np.float32)
        for stored, weight in self.parts:
            stored.put(on_host(weight), made)
        return made


def tensors(model: Transformer, names: Names) -> list[Tensor]:
    """Every tensor that a format stores of a model in its family's layout, in forward order.

    Weights that one tensor holds twice (Phi's one norm for both branches) must be equal: the last
    one is written. What a tensor holds beside ours (skipped rows, a table that is added) is 0.
    """
    flat = jax.tree_util.tree_flatten_with_path(nnx.state(model))[0]
    found: dict[str, list[tuple[Stored, Any]]] = {}
    for path, weight in flat:
        stored = names.stored(dotted(path), model.config)
        found.setdefault(stored.name, []).append((stored, weight))
    made = []
    for name, parts in found.items():
        stored, weight = parts[0]
        shape = stored.shape(weight.shape)
        made.append(Tensor(names.written(name), shape, tuple(parts)))
        if stored.plus_row is not None:
            made.append(Tensor(names.written(stored.plus_row), (1, *shape[1:])))
    return made


def shared(names: Names, config: ModelConfig, paths: list[str]) -> list[list[str]]:
    """Our weights that a format stores as one and the same, in groups."""
    found: dict[str, list[str]] = {}
    for path in paths:
        stored = names.stored(path, config)
        if stored.part is None:
            found.setdefault(stored.name, []).append(path)
    return [group for group in found.values() if len(group) > 1]
