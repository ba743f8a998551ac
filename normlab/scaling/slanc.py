"""SLaNC as its paper prints it (Salmani, Soloveychik 2024, arXiv:2410.10553)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.norms import Norm
from normlab.scaling import weights
from normlab.scaling.rules import scale_rules
from normlab.scaling.walk import walk


@dataclass(frozen=True)
class Rows:
    """Rows u ⊙ g of an isotropic u with norm √d: their mean square norm is Σg².

    Args:
        gain: g; all one value where only the norm is known.
        direct: u ⊙ g is the stream itself, no norm between.
        along: mean product of the row with the stream it branched from, where that is known.
    """

    gain: weights.Vector
    direct: bool = False
    along: float = 0.0

    @classmethod
    def flat(cls, square: float, width: int, along: float = 0.0) -> "Rows":
        """Rows of which only the mean square norm is known."""
        return cls(np.full(width, np.sqrt(max(square, 0.0) / width)), along=along)


class SLaNC:
    """The paper's formulas, and what carries them to placements that it prints none for.

    Post-norm, M the block's linear map: ‖Γ(M + I)‖_F, with M = EG in a plain MLP (Eq. 5),
    ‖ΓE‖₂·BG in a gated one (Eq. 8), W_V P in attention (Eq. 10); Γ is the gain, as stored, of the
    norm whose output enters the block. Where no norm precedes (the first block of a post-norm
    stack) the embedding stands in: Γ = r/√d with r the RMS norm of its rows.

    A branch behind a norm of its own adds a vector taken as uncorrelated with the stream: with
    norm_in alone s² grows by ‖ΓM‖²_F, with norm_out by Σγ_out². An output norm sees the raw
    branch, ‖ΓM‖_F; queries and keys ‖ΓW_h‖_F for head h. As in the paper, biases (β of a
    LayerNorm, b of a linear map) and the non-linearity's contraction are left out, and centring,
    which only lowers the sum, is too.
    """

    def stem(self, model: Transformer) -> Rows:
        """The RMS norm of the embedding rows; learned positions add their mean square."""
        tables = weights.tables(model)
        square = sum(c**2 * float(jnp.mean(jnp.sum(t * t, axis=1))) for c, t in tables)
        return Rows.flat(square, model.config.width)

    def size(self, rows: Rows, norm: Norm) -> float:
        """Root mean square of ‖x‖."""
        return float(np.linalg.norm(rows.gain))

    def head_sizes(self, rows: Rows, linear: Linear, norm: Norm) -> np.ndarray:
        """‖ΓW_h‖_F for each head h."""
        squares = weights.host(
            jnp.sum(weights.scaled_rows(rows.gain, weights.kernel(linear)) ** 2, 0)
        )
        return np.sqrt(squares.reshape(-1, norm.width).sum(axis=1))

    def normed(self, rows: Rows, norm: Norm) -> Rows:
        """Γ."""
        return Rows(weights.gain(norm))

    def fork(self, rows: Rows) -> Rows:
        """A branch that reads this without a norm between reads the stream itself."""
        return Rows(rows.gain, direct=True)

    def attention(self, rows: Rows, branch: Attention) -> Rows:
        """Each token attending to itself: M = W_V P."""
        return _mapped(rows, weights.product(weights.values(branch)[0], weights.kernel(branch.out)))

    def mlp(self, rows: Rows, branch: MLP) -> Rows:
        """M = EG, or ‖ΓE‖₂·BG. (Γ as stored: √d enters once, with u.)"""
        first, contraction = weights.kernel(branch.gate), 1.0
        if branch.up is not None:
            contraction = weights.spectral_norm(weights.scaled_rows(rows.gain, first))
            first = weights.kernel(branch.up)
        return _mapped(rows, contraction * weights.product(first, weights.kernel(branch.down)))

    def add(self, stream: Rows, branch: Rows, gain: float) -> Rows:
        """‖Γ(gM + I)‖²_F where the branch reads the stream, else the sum of the squares."""
        square = np.sum(stream.gain**2) + gain**2 * np.sum(branch.gain**2)
        return Rows.flat(square + 2 * gain * branch.along, len(stream.gain))


def _mapped(rows: Rows, matrix: Float[Array, "d d"]) -> Rows:
    mapped = weights.scaled_rows(rows.gain, matrix)
    along = float(np.sum(rows.gain**2 * weights.host(jnp.diag(matrix)))) if rows.direct else 0.0
    return Rows.flat(float(jnp.sum(mapped * mapped)), len(rows.gain), along)


@scale_rules.register("slanc")
def slanc(model: Transformer) -> dict[str, Any]:
    """The paper's scales, with our reading for pre-norm, peri-norm and query/key norms."""
    return walk(model, SLaNC())
