"""Pytrees as flat dictionaries of their leaves by name, the form in which they are stored."""

from collections.abc import Callable
from typing import Any

import jax

from normlab.parallel.sharding import dotted

Tree = Any


def to_names(tree: Tree) -> dict[str, Any]:
    """Any pytree as a flat dictionary of its leaves by path, the form in which it is stored."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {dotted(path): leaf for path, leaf in leaves}


def from_names(names: dict[str, Any], like: Tree, saved_as: Callable[[str], str] = str) -> Tree:
    """The pytree shaped `like`, its leaves taken from a dictionary that `to_names` made."""
    leaves = [names[saved_as(k)] for k in to_names(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
