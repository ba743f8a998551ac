"""SLaNC as its paper prints it (Salmani, Trukhanov & Soloveychik 2024, arXiv:2410.10553)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.norms import Norm
from normlab.scaling import weights
from normlab.scaling.propagate import propagate
from normlab.scaling.rules import scale_rules


@dataclass(frozen=True)
class Rows:
    """Rows u ⊙ g of an isotropic u with norm √d: their mean square norm is Σg².

    Args:
        weight: g; all one value where only the norm is known.
        direct: u ⊙ g is the stream itself, no norm between.
        along: mean product of the row with the stream it branched from, where that is known.
        matrix: inside a sublayer, the rows are c·(u ⊙ g)M with this M.
        factor: c.
    """

    gamma: weights.Vector
    direct: bool = False
    along: float = 0.0
    matrix: Float[Array, "d m"] | None = None
    factor: float = 1.0

    @classmethod
    def flat(cls, square: float, width: int, along: float = 0.0) -> "Rows":
        """Rows of which only the mean square norm is known."""
        return cls(np.full(width, np.sqrt(max(square, 0.0) / width)), along=along)


class SLaNC:
    """The paper's formulas, and what carries them to placements that it prints none for.

    Post-norm, M the block's linear map: ‖Γ(M + I)‖_F. M is EG in a plain MLP (Eq. 5), ‖ΓE‖₂·BG in a
    gated one (Eq. 8), W_V P in attention (Eq. 10). Γ is the weight, as stored, of the norm whose
    output enters the block. Where no norm precedes (the first block of a post-norm stack) the
    embedding stands in: Γ = r/√d with r the RMS norm of its rows.

    A branch after a norm of its own adds a vector taken as uncorrelated with the stream: with
    norm_in alone s² grows by ‖ΓM‖²_F, with norm_out by Σγ_out². An output norm sees the raw branch,
    ‖ΓM‖_F. Queries, keys and values have ‖ΓW_h‖_F for head h. The norm before an output map has the
    block's formula up to there: ‖ΓW_V‖_F, ‖ΓE‖_F or ‖ΓE‖₂·‖ΓB‖_F. Behind either, rows are isotropic
    again. A head scale belongs to W_V, or to the weight of the norm on values. As in the paper,
    biases (β of a LayerNorm, b of a linear map) and the non-linearity's contraction are left out.
    So is centring, which only lowers the sum.
    """

    def embed_tokens(self, model: Transformer) -> Rows:
        """The RMS norm of the embedding rows; learned positions add their mean square."""
        tables = weights.tables(model)
        square = sum(c**2 * float(jnp.mean(jnp.sum(t * t, axis=1))) for c, t in tables)
        return Rows.flat(square, model.config.width)

    def size(self, rows: Rows, norm: Norm) -> float:
        """Root mean square of ‖x‖."""
        if rows.matrix is None:
            return float(np.linalg.norm(rows.gamma))
        return rows.factor * math.sqrt(float(_square(rows.gamma, rows.matrix)))

    def head_sizes(self, rows: Rows, linear: Linear, norm: Norm) -> np.ndarray:
        """‖ΓW_h‖_F for each head h."""
        squares = weights.host(
            jnp.sum(weights.scaled_rows(rows.gamma, weights.kernel(linear)) ** 2, 0)
        )
        return np.sqrt(squares.reshape(-1, norm.width).sum(axis=1))

    def normed(self, rows: Rows, norm: Norm) -> Rows:
        """Γ."""
        return Rows(weights.gamma(norm))

    def times(self, rows: Rows, factor: float) -> Rows:
        """cΓ."""
        return Rows(abs(factor) * rows.gamma)

    def fork(self, rows: Rows) -> Rows:
        """A branch that reads this without a norm between reads the stream itself."""
        return Rows(rows.gamma, direct=True)

    def inner(self, rows: Rows, branch: Attention | MLP) -> Rows:
        """W_V, each token attending to itself; E, or ‖ΓE‖₂·B. (√d enters once, with u.)"""
        if isinstance(branch, MLP):
            first = weights.kernel(branch.gate)
            if branch.up is None:
                return replace(rows, matrix=first)
            contraction = weights.spectral_norm(weights.scaled_rows(rows.gamma, first))
            return replace(rows, matrix=weights.kernel(branch.up), factor=contraction)
        factors = weights.head_gains(branch)
        if branch.norm_v is None:
            w = weights.values(branch)[0]
            return replace(rows, matrix=w * jnp.asarray(factors, jnp.float32))
        return Rows(factors * np.tile(weights.gamma(branch.norm_v), branch.config.heads))

    def out(self, rows: Rows, branch: Attention | MLP) -> Rows:
        """M = W_V P, EG, or ‖ΓE‖₂·BG; P or G alone after a norm."""
        last = weights.kernel(weights.output(branch))
        if rows.matrix is None:
            return _mapped(rows, last)
        return _mapped(rows, rows.factor * weights.product(rows.matrix, last))

    def add(self, stream: Rows, branch: Rows, gamma: float) -> Rows:
        """‖Γ(gM + I)‖²_F where the branch reads the stream, else the sum of the squares."""
        square = np.sum(stream.gamma**2) + gamma**2 * np.sum(branch.gamma**2)
        return Rows.flat(square + 2 * gamma * branch.along, len(stream.gamma))


def _mapped(rows: Rows, matrix: Float[Array, "m d"]) -> Rows:
    along = float(np.sum(rows.gamma**2 * weights.host(jnp.diag(matrix)))) if rows.direct else 0.0
    return Rows.flat(float(_square(rows.gamma, matrix)), matrix.shape[1], along)


@jax.jit
def _square(factors: weights.Vector, matrix: Float[Array, "m d"]) -> Float[Array, ""]:
    """‖diag(factors) M‖²_F."""
    return jnp.sum(jnp.square(weights.scaled_rows(factors, matrix)))


@scale_rules.register("slanc")
def slanc(model: Transformer) -> dict[str, Any]:
    """The paper's scales, carried to pre-norm and query/key norms; not for a peri-norm model."""
    return propagate(model, SLaNC())
