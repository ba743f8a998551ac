"""Groups of parameters: which decay, and which are matrices of the blocks."""

from typing import Any, NamedTuple

import jax

from normlab.runs.names import to_names

MATRICES = ("kernel", "embedding")
"""Names of the parameters that are matrices of the model: the ones that decay."""


class Groups(NamedTuple):
    """Trees of booleans like the parameters.

    Args:
        decays: whether weight decay pulls at it.
        hidden: whether it is a matrix of a block, neither embedding nor head.
    """

    decays: Any
    hidden: Any


def group(path: str, leaf: jax.Array, stacked: bool = False, norms: bool = False) -> str:
    """The one group that a parameter belongs to: "decay" or "no_decay".

    Matrices of linear maps and embeddings decay. Norm weights, biases, DyT's α, branch gains and
    embedding scales do not, unless norms' weights are asked to: pulling them to zero is no
    regularization but another model.

    Raises:
        ValueError: a parameter that neither rule knows, such as a norm's matrix.
    """
    name = path.rsplit(".", 1)[-1]
    layers = 1 if stacked and path.startswith("blocks.") else 0  # an axis that is no matrix's
    if (name in MATRICES) != (leaf.ndim - layers == 2):
        raise ValueError(
            f"parameter {path} of shape {leaf.shape} falls in no optimizer group: expected a "
            f"matrix named {' or '.join(MATRICES)}, or a vector or scalar of another name"
        )
    return "decay" if name in MATRICES or (norms and name == "weight") else "no_decay"


def groups(params: Any, stacked: bool = False, norms: bool = False) -> dict[str, str]:
    """Each parameter's group by path; every parameter falls in exactly one.

    Args:
        params: of a model.
        stacked: they are a stacked model's (`normlab.training.stacked`).
        norms: norms' weights decay too.
    """
    return {path: group(path, leaf, stacked, norms) for path, leaf in to_names(params).items()}


def is_hidden(path: str) -> bool:
    """Whether a parameter is a matrix of a block."""
    return path.startswith("blocks.") and path.endswith(".kernel")
