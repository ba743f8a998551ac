"""The scales of SLaNC's published code, where they are not those of its paper."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.norms import Norm
from normlab.scaling import weights
from normlab.scaling.propagate import propagate
from normlab.scaling.rules import scale_rules


@dataclass(frozen=True)
class Adjacent:
    """What the code looks at: the formula of the block before, and the gain of the norm before.

    Inside a block, `entered` is the gain of the norm before the block.
    """

    scale: float
    gamma: weights.Vector
    entered: weights.Vector | None = None


class PublishedCode:
    """A norm's scale is the formula of the block that stands before it, whatever else adds up.

    After attention ‖Γ(W_V P + I)‖_F, with the key/value heads *tiled* over the query heads. They
    lie as 0 1 0 1 for 0 0 1 1: wrong pairs where there are groups. After a plain MLP
    mean|γ|·‖E‖₂·‖G‖₂; after a gated one ‖ΓE‖₂·‖ΓBG‖_F, without I. The stream that accumulates in
    pre- and peri-norm is not seen. A norm with no block before it has 1. So have norms inside a
    block (of queries, keys and values, and before the output map), for which the code has no
    formula. An output norm and the input norm after it both have their block's. Constants of a
    placement (α, 1/√ℓ, head scales) are not seen either.
    """

    def embed_tokens(self, model: Transformer) -> Adjacent:
        """1."""
        return Adjacent(1.0, np.ones(model.config.width))

    def size(self, rows: Adjacent, norm: Norm) -> float:
        """The formula of the block before."""
        return rows.scale

    def head_sizes(self, rows: Adjacent, linear: Linear, norm: Norm) -> np.ndarray:
        """1."""
        return np.ones(1)

    def normed(self, rows: Adjacent, norm: Norm) -> Adjacent:
        """The gain of the last norm; the block before stays the block before."""
        return Adjacent(rows.scale, weights.gamma(norm), rows.entered)

    def times(self, rows: Adjacent, factor: float) -> Adjacent:
        """The same."""
        return rows

    def fork(self, rows: Adjacent) -> Adjacent:
        """The same."""
        return rows

    def inner(self, rows: Adjacent, branch: Attention | MLP) -> Adjacent:
        """1: no block stands before."""
        return Adjacent(1.0, rows.gamma, entered=rows.gamma)

    def out(self, rows: Adjacent, branch: Attention | MLP) -> Adjacent:
        """The block's formula."""
        gamma = rows.gamma if rows.entered is None else rows.entered
        formula = _mlp if isinstance(branch, MLP) else _attention
        return Adjacent(formula(gamma, branch), gamma)

    def add(self, stream: Adjacent, branch: Adjacent, gamma: float) -> Adjacent:
        """The branch alone."""
        return branch


def _attention(gamma: weights.Vector, branch: Any) -> float:
    """‖Γ(W_V P + I)‖_F with tiled heads."""
    w, c = weights.kernel(branch.value), branch.config
    matrix = weights.product(jnp.tile(w, (1, c.heads // c.kv)), weights.kernel(branch.out))
    return float(jnp.linalg.norm(weights.scaled_rows(gamma, matrix + jnp.eye(len(matrix)))))


def _mlp(gamma: weights.Vector, branch: Any) -> float:
    """mean|γ|·‖E‖₂·‖G‖₂, or ‖ΓE‖₂·‖ΓBG‖_F."""
    first, last = weights.kernel(branch.gate), weights.kernel(branch.down)
    if branch.up is None:
        norms = weights.spectral_norm(first) * weights.spectral_norm(last)
        return float(np.mean(np.abs(gamma))) * norms
    mapped = weights.scaled_rows(gamma, weights.product(weights.kernel(branch.up), last))
    contraction = weights.spectral_norm(weights.scaled_rows(gamma, first))
    return contraction * float(jnp.linalg.norm(mapped))


@scale_rules.register("slanc_code")
def slanc_code(model: Transformer) -> dict[str, Any]:
    """The scales of `slanc_tuning` in d-matrix-ai/dmx-compressor, `layer_reconstruction.py`."""
    return propagate(model, PublishedCode())
