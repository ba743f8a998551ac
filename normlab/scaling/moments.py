"""Scales from moments carried through the weights: normlab's own rule (docs/scales.md)."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.linear import Linear
from normlab.model.mlp import FUNCTIONS, MLP
from normlab.norms import Norm
from normlab.scaling import weights
from normlab.scaling.propagate import propagate
from normlab.scaling.rules import scale_rules
from normlab.scaling.weights import Vector

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()
TINY = 1e-30


@dataclass(frozen=True)
class Rows:
    """A row's coordinates by mean and variance, taken as uncorrelated with each other.

    Args:
        mean: E x_i.
        variance: E x_i² − (E x_i)².
        slope: how coordinate i follows coordinate i of the stream that the branch left:
            their covariance over the stream's variance. 1 for the stream itself.
    """

    mean: Vector
    variance: Vector
    slope: Vector

    def moved(self, before: Vector, a: Vector, after: Vector) -> "Rows":
        """(x + before) ⊙ a + after."""
        return Rows((self.mean + before) * a + after, self.variance * a**2, self.slope * a)

    def through(self, linear: Linear) -> tuple[Vector, Vector]:
        """Mean and variance of xW + b."""
        w = weights.kernel(linear)
        mean = weights.host(weights.product(self.mean[None], w))[0] + weights.bias(linear)
        return mean, weights.host(weights.product(self.variance[None], w * w))[0]


@dataclass(frozen=True)
class Inside:
    """Rows inside a sublayer: xK + c + noise, x what entered, the noise uncorrelated with x."""

    entered: Rows
    linear: Float[Array, "d m"]
    constant: Vector
    noise: Vector

    @property
    def mean(self) -> Vector:
        """Of each element."""
        linear = weights.product(self.entered.mean[None], self.linear)
        return weights.host(linear)[0] + self.constant

    @property
    def variance(self) -> Vector:
        """Of each element."""
        linear = weights.product(self.entered.variance[None], self.linear**2)
        return weights.host(linear)[0] + self.noise

    def moved(self, before: Vector, a: Vector, after: Vector) -> "Inside":
        """(x + before) ⊙ a + after."""
        linear = self.linear * jnp.asarray(a, jnp.float32)
        return Inside(self.entered, linear, (self.constant + before) * a + after, self.noise * a**2)


def squares(rows: Rows | Inside, norm: Norm) -> tuple[Vector, Vector]:
    """Means of ‖x‖² and of the average element that the norm takes away, a head (width) a number.

    The average is 0 where the norm does not centre; ‖x‖² is that of the centred row, where the
    statistic is that row's.
    """
    mean, variance = (v.reshape(-1, norm.width) for v in (rows.mean, rows.variance))
    middle = mean.mean(axis=1) * weights.takes_mean_away(norm)
    about = middle[:, None] * norm.centres
    return variance.sum(axis=1) + np.sum((mean - about) ** 2, axis=1), middle


class Moments:
    """What leaves each part of a transformer, given the moments of what enters it.

    Args:
        coherent: keep the mean that all rows share. Without it, each mean square counts as
            variance: rows whose common part has cancelled.
    """

    def __init__(self, coherent: bool = True):
        self.coherent = coherent

    def rows(self, mean: Vector, variance: Vector, slope: Vector) -> Rows:
        """The rows, their mean folded into the variance where it is not kept."""
        if self.coherent:
            return Rows(mean, variance, slope)
        return Rows(np.zeros_like(mean), variance + mean**2, slope)

    def embed_tokens(self, model: Transformer) -> Rows:
        """Each token equally likely, each learned position too."""
        tables = weights.tables(model)
        mean = np.sum([c * weights.host(jnp.mean(t, axis=0)) for c, t in tables], axis=0)
        variance = np.sum([c**2 * weights.host(jnp.var(t, axis=0)) for c, t in tables], axis=0)
        return self.rows(mean, variance, np.ones(model.config.width))

    def size(self, rows: Rows | Inside, norm: Norm) -> float:
        """Root mean square of ‖x‖."""
        return np.sqrt(max(squares(rows, norm)[0][0], TINY))

    def head_sizes(self, rows: Rows, linear: Linear, norm: Norm) -> np.ndarray:
        """Root mean square of each head's norm."""
        mean, variance = (v.reshape(-1, norm.width) for v in rows.through(linear))
        middle = mean.mean(axis=1, keepdims=True) if norm.centres else 0.0
        return np.sqrt(((mean - middle) ** 2 + variance).sum(axis=1))

    def normed(self, rows: Rows | Inside, norm: Norm) -> Any:
        """x·√(d / E‖x‖²) ⊙ γ + β: the norm of a row, or head, replaced by its root mean square."""
        square, middle = squares(rows, norm)
        a = np.sqrt(norm.width / np.maximum(square, TINY))[:, None] * weights.gamma(norm)
        after = np.tile(weights.shift(norm), len(square))
        moved = rows.moved(-np.repeat(middle, norm.width), a.ravel(), after)
        return (
            moved
            if isinstance(moved, Inside)
            else self.rows(moved.mean, moved.variance, moved.slope)
        )

    def times(self, rows: Rows, factor: float) -> Rows:
        """Mean and slope by c, variance by c²."""
        return Rows(rows.mean * factor, rows.variance * factor**2, rows.slope * factor)

    def fork(self, rows: Rows) -> Rows:
        """The stream follows itself."""
        return replace(rows, slope=np.ones_like(rows.mean))

    def inner(self, rows: Rows, branch: Attention | MLP) -> Inside:
        """Hidden units; or the values, each token attending to itself, head scales with them."""
        if isinstance(branch, MLP):
            return hidden(rows, branch)
        value = branch.value
        inside = Inside(rows, weights.kernel(value), weights.bias(value), np.zeros(1))
        if branch.norm_v is not None:
            inside = self.normed(inside, branch.norm_v)
        linear, constant = (weights.repeated(x, branch) for x in (inside.linear, inside.constant))
        inside = Inside(rows, linear, weights.host(constant), np.zeros(linear.shape[1]))
        return inside.moved(np.zeros(1), weights.head_gains(branch), np.zeros(1))

    def out(self, rows: Inside, branch: Attention | MLP) -> Rows:
        """The linear part goes on as a linear map of what entered the sublayer."""
        last, bias = weights.kernel(weights.output(branch)), weights.bias(weights.output(branch))
        linear = weights.product(rows.linear, last)
        constant = weights.host(weights.product(rows.constant[None], last))[0]
        noise = weights.host(weights.product(rows.noise[None], last * last))[0]
        mapped = self.mapped(rows.entered, linear, constant + bias)
        return replace(mapped, variance=mapped.variance + noise)

    def mapped(self, rows: Rows, matrix: Float[Array, "d d"], constant: Vector) -> Rows:
        """Rows through x ↦ xM + c."""
        mean = weights.host(weights.product(rows.mean[None], matrix))[0] + constant
        variance = weights.host(weights.product(rows.variance[None], matrix * matrix))[0]
        return self.rows(mean, variance, rows.slope * weights.host(jnp.diag(matrix)))

    def add(self, stream: Rows, branch: Rows, gamma: float) -> Rows:
        """Means add, and variances, and twice the covariance of branch and stream."""
        follows = 1 + 2 * gamma * branch.slope
        variance = np.maximum(stream.variance * follows + gamma**2 * branch.variance, 0.0)
        return Rows(stream.mean + gamma * branch.mean, variance, np.ones_like(variance))


def hidden(rows: Rows, branch: MLP) -> Inside:
    """The regression of h = F(g)·b on x, g and b Gaussian with the covariance that x gives them."""
    first = weights.kernel(branch.gate)
    g_mean, g_var = rows.through(branch.gate)
    if branch.up is None:
        second, b_mean = jnp.zeros_like(first), np.ones_like(g_mean)
        b_var = both = np.zeros_like(g_mean)
    else:
        second = weights.kernel(branch.up)
        b_mean, b_var = rows.through(branch.up)
        both = weights.host(weights.product(rows.variance[None], first * second))[0]
    sigma = np.sqrt(np.maximum(g_var, TINY))
    z, p = NODES[:, None], NODE_WEIGHTS[:, None]
    f = weights.host(FUNCTIONS[branch.activation](jnp.asarray(g_mean + sigma * z, jnp.float32)))
    b = b_mean + both / sigma * z  # the mean of b given g
    mean, by_b = np.sum(p * f * b, axis=0), np.sum(p * f, axis=0)
    square = np.sum(p * f**2 * (b**2 + np.maximum(b_var - (both / sigma) ** 2, 0.0)), axis=0)
    by_g = (np.sum(p * z * f * b, axis=0) - both / sigma * by_b) / sigma  # Stein: E[F'(g)·b]
    linear = first * jnp.asarray(by_g, jnp.float32) + second * jnp.asarray(by_b, jnp.float32)
    explained = weights.host(weights.product(rows.variance[None], linear * linear))[0]
    constant = mean - weights.host(weights.product(rows.mean[None], linear))[0]
    return Inside(rows, linear, constant, np.maximum(square - mean**2 - explained, 0.0))


def root_mean_squares(model: Transformer) -> dict[str, tuple[Any, Any]]:
    """The predicted root mean square of ‖x‖ at each site: (incoherent, coherent)."""
    low, high = (propagate(model, Moments(coherent)) for coherent in (False, True))
    return {site: (low[site], high[site]) for site in low}


def headroom(width: int) -> float:
    """κ = (4d)^¼: with s = ‖x‖/κ the row is in the middle of what FP16 sums without loss.

    Squares keep their precision from about 2⁻¹⁴ on, so the sum of a row does from d·2⁻¹⁴; it
    overflows at 2¹⁶. The middle of the two, in the logarithm, is Σ = 2√d = κ².
    """
    return (4 * width) ** 0.25


def harmless(norm: Norm) -> float:
    """The largest scale at which no underflow harms any row (docs/scales.md, 'The cap').

    128√ε; 128ε where ε is the root's least value, √2·ε where it is added to the root.
    """
    return norm.eps_form.cap * norm.least_rms()


@scale_rules.register("moments")
def moments(model: Transformer) -> dict[str, Any]:
    """The middle of two predicted norms in the middle of FP16's range, from the weights alone.

    s = √(a·b)/κ with a and b the root mean squares of ‖x‖ without and with a common mean. Where it
    is below the cap it is raised to it: up to there underflow is harmless.
    """
    norms = weights.norms_by_site(model)
    found = {}
    for site, (low, high) in root_mean_squares(model).items():
        middle = np.sqrt(low * high) / headroom(norms[site].width)
        found[site] = np.maximum(middle, harmless(norms[site]))
    return found
