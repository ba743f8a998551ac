"""A bound on ‖x‖ at each norm that no input can exceed, and the scale that follows from it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import MLP
from normlab.norms import Norm, all_norms
from normlab.scaling import weights
from normlab.scaling.invariance import RuleDoesNotApply
from normlab.scaling.propagate import propagate
from normlab.scaling.rules import scale_rules

LARGEST_SUM = 2.0**14
"""Largest Σ(x/s)² under the rule `bound`: a quarter of FP16's range, for rounding upwards."""


@dataclass(frozen=True)
class Rows:
    """Rows z ⊙ g + b with ‖z‖ ≤ r."""

    radius: float
    gamma: weights.Vector
    shift: weights.Vector

    @classmethod
    def ball(cls, radius: float, width: int) -> "Rows":
        """All rows with ‖x‖ ≤ r."""
        return cls(radius, np.ones(width), np.zeros(width))

    @property
    def bound(self) -> float:
        """Of the norm."""
        return self.radius * float(np.max(np.abs(self.gamma))) + float(np.linalg.norm(self.shift))


class NormBound:
    """Spectral norms and the triangle inequality, from the embedding to the last norm.

    A normalized row has ‖x̂‖ ≤ √d, with or without centring, whatever ε. So every block after a
    norm is bounded by its weights alone, and the stream by the sum of its blocks. Attention gives
    each head a convex combination of that head's values, whatever the weights of attention; so of
    normalized values too, ‖x̂_h‖ ≤ √k.
    """

    def embed_tokens(self, model: Transformer) -> Rows:
        """The longest embedding row and the longest learned position row."""
        tables = weights.tables(model)
        longest = sum(abs(c) * float(jnp.max(jnp.linalg.norm(t, axis=1))) for c, t in tables)
        return Rows.ball(longest, model.config.width)

    def size(self, rows: Rows, norm: Norm) -> float:
        """The bound; ‖x − μ‖ ≤ ‖x‖."""
        return rows.bound

    def head_sizes(self, rows: Rows, linear: Linear, norm: Norm) -> np.ndarray:
        """r·‖ΓW_h‖₂ + ‖bW_h + b_h‖ for each head h."""
        return _heads(rows, weights.kernel(linear), weights.bias(linear), norm.width)

    def normed(self, rows: Rows, norm: Norm) -> Rows:
        """‖x̂‖ ≤ √d."""
        return Rows(np.sqrt(norm.width), weights.gamma(norm), weights.shift(norm))

    def fork(self, rows: Rows) -> Rows:
        """The same."""
        return rows

    def times(self, rows: Rows, factor: float) -> Rows:
        """The same by |c|."""
        return Rows(rows.radius * abs(factor), rows.gamma, rows.shift * factor)

    def inner(self, rows: Rows, branch: Attention | MLP) -> Rows:
        """√(Σ_h max‖v_h‖²), or ‖h‖ of an MLP."""
        if isinstance(branch, MLP):
            return Rows.ball(_hidden(rows, branch), branch.down.kernel.shape[0])
        factors, size = weights.head_gains(branch), branch.config.head_size
        if branch.norm_v is None:
            heads = np.abs(factors[::size]) * _heads(rows, *weights.values(branch), size)
            return Rows.ball(float(np.linalg.norm(heads)), len(factors))
        gamma, shift = weights.gamma(branch.norm_v), weights.shift(branch.norm_v)
        gamma, shift = (factors * np.tile(v, branch.config.heads) for v in (gamma, shift))
        return Rows(np.sqrt(len(factors)), gamma, shift)

    def out(self, rows: Rows, branch: Attention | MLP) -> Rows:
        """r·‖ΓP‖₂ around bP + b_P."""
        linear = weights.output(branch)
        norm = rows.radius * weights.spectral_norm(
            weights.scaled_rows(rows.gamma, weights.kernel(linear))
        )
        constant = _constant(rows, weights.kernel(linear), weights.bias(linear))
        return Rows(norm, np.ones(len(constant)), constant)

    def add(self, stream: Rows, branch: Rows, gamma: float) -> Rows:
        """The triangle inequality."""
        return Rows.ball(stream.bound + abs(gamma) * branch.bound, len(stream.gamma))


def _heads(rows: Rows, matrix: Array, bias: np.ndarray, size: int) -> np.ndarray:
    mapped = weights.scaled_rows(rows.gamma, matrix)
    constant = _constant(rows, matrix, bias).reshape(-1, size)
    blocks = [mapped[:, i : i + size] for i in range(0, mapped.shape[1], size)]
    spectral = np.array([weights.spectral_norm(block) for block in blocks])
    return rows.radius * spectral + np.linalg.norm(constant, axis=1)


def _hidden(rows: Rows, branch: MLP) -> float:
    """‖h‖: |F(g)| ≤ |g| for each F here, and ‖g ⊙ b‖ ≤ max|g|·‖b‖, or the other way."""
    gate = _norm_and_largest(rows, branch.gate)
    if branch.up is None:
        return gate[0]
    up = _norm_and_largest(rows, branch.up)
    return min(gate[0] * up[1], gate[1] * up[0])


def _norm_and_largest(rows: Rows, linear: Linear) -> tuple[float, float]:
    """Bounds of ‖y‖ and of max|y_j|, y the rows through `linear`."""
    mapped = weights.scaled_rows(rows.gamma, weights.kernel(linear))
    constant = _constant(rows, weights.kernel(linear), weights.bias(linear))
    columns = weights.host(jnp.linalg.norm(mapped, axis=0))
    norm = rows.radius * weights.spectral_norm(mapped) + np.linalg.norm(constant)
    return float(norm), float(np.max(rows.radius * columns + np.abs(constant)))


def _constant(rows: Rows, matrix: Array, bias: np.ndarray) -> np.ndarray:
    return weights.host(weights.product(rows.shift[None], matrix))[0] + bias


def norm_bounds(model: Transformer) -> dict[str, Any]:
    """By site name, a number that ‖x‖ there exceeds for no input (a head a number at q, k, v).

    Proved in exact arithmetic; the model's own float32 rounding is not in it.

    Raises:
        RuleDoesNotApply: a norm for which ‖x̂‖ ≤ √d is not known.
    """
    unbounded = [norm for norm in all_norms(model) if not norm.unit_rows]
    if unbounded:
        raise RuleDoesNotApply(
            f"the rule 'bound' rests on rows of norm at most √d, which norm "
            f"{unbounded[0].config.type!r} at {unbounded[0].site.name} doesn't promise; take "
            "another, such as random_tokens, calibrated_max or row_max"
        )
    return propagate(model, NormBound())


@scale_rules.register("bound")
def bound(model: Transformer) -> dict[str, Any]:
    """The smallest scale that provably keeps Σ(x/s)² ≤ 2¹⁴: it can't overflow FP16."""
    return {site: b / np.sqrt(LARGEST_SUM) for site, b in norm_bounds(model).items()}
