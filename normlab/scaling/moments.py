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
from normlab.scaling.rules import scale_rules
from normlab.scaling.walk import walk
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

    def square(self, norm: Norm) -> float:
        """The mean of ‖x‖², of ‖x − μ‖² where the norm centres."""
        mean = self.mean - self.mean.mean() if weights.centres(norm) else self.mean
        return float(np.sum(self.variance) + np.sum(mean**2))

    def through(self, linear: Linear) -> tuple[Vector, Vector]:
        """Mean and variance of xW + b."""
        w = weights.kernel(linear)
        mean = weights.host(weights.product(self.mean[None], w))[0] + weights.bias(linear)
        return mean, weights.host(weights.product(self.variance[None], w * w))[0]


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

    def stem(self, model: Transformer) -> Rows:
        """Each token equally likely, each learned position too."""
        tables = weights.tables(model)
        mean = np.sum([c * weights.host(jnp.mean(t, axis=0)) for c, t in tables], axis=0)
        variance = np.sum([c**2 * weights.host(jnp.var(t, axis=0)) for c, t in tables], axis=0)
        return self.rows(mean, variance, np.ones(model.config.width))

    def size(self, rows: Rows, norm: Norm) -> float:
        """Root mean square of ‖x‖."""
        return np.sqrt(max(rows.square(norm), TINY))

    def head_sizes(self, rows: Rows, linear: Linear, norm: Norm) -> np.ndarray:
        """Root mean square of each head's norm."""
        mean, variance = rows.through(linear)
        return np.sqrt((mean**2 + variance).reshape(-1, norm.width).sum(axis=1))

    def normed(self, rows: Rows, norm: Norm) -> Rows:
        """x·√(d / E‖x‖²) ⊙ γ + β: the norm of a row replaced by its root mean square."""
        square, mean = rows.square(norm), rows.mean
        if weights.centres(norm):
            mean = mean - mean.mean()
        a = np.sqrt(norm.width / max(square, TINY)) * weights.gain(norm)
        return self.rows(mean * a + weights.shift(norm), rows.variance * a**2, rows.slope * a)

    def fork(self, rows: Rows) -> Rows:
        """The stream follows itself."""
        return replace(rows, slope=np.ones_like(rows.mean))

    def attention(self, rows: Rows, branch: Attention) -> Rows:
        """Each token attending to itself: the linear map W_V P."""
        w, b = weights.values(branch)
        out = weights.kernel(branch.out)
        constant = weights.host(weights.product(b[None], out))[0] + weights.bias(branch.out)
        return self.mapped(rows, weights.product(w, out), constant)

    def mlp(self, rows: Rows, branch: MLP) -> Rows:
        """Gaussian gates and ups, correlated: h's linear part goes on as a linear map of x."""
        units = hidden(rows, branch)
        down = weights.kernel(branch.down)
        linear = weights.product(units.linear, down)
        constant = weights.host(weights.product(units.constant[None], down))[0]
        noise = weights.host(weights.product(units.noise[None], down * down))[0]
        mapped = self.mapped(rows, linear, constant + weights.bias(branch.down))
        return replace(mapped, variance=mapped.variance + noise)

    def mapped(self, rows: Rows, matrix: Float[Array, "d d"], constant: Vector) -> Rows:
        """Rows through x ↦ xM + c."""
        mean = weights.host(weights.product(rows.mean[None], matrix))[0] + constant
        variance = weights.host(weights.product(rows.variance[None], matrix * matrix))[0]
        return self.rows(mean, variance, rows.slope * weights.host(jnp.diag(matrix)))

    def add(self, stream: Rows, branch: Rows, gain: float) -> Rows:
        """Means add, and variances, and twice the covariance of branch and stream."""
        follows = 1 + 2 * gain * branch.slope
        variance = np.maximum(stream.variance * follows + gain**2 * branch.variance, 0.0)
        return Rows(stream.mean + gain * branch.mean, variance, np.ones_like(variance))


@dataclass(frozen=True)
class Hidden:
    """An MLP's hidden row as h ≈ xK + c + noise, the noise uncorrelated with x."""

    linear: Float[Array, "d m"]
    constant: Vector
    noise: Vector


def hidden(rows: Rows, branch: MLP) -> Hidden:
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
    return Hidden(linear, constant, np.maximum(square - mean**2 - explained, 0.0))


def root_mean_squares(model: Transformer) -> dict[str, tuple[Any, Any]]:
    """The predicted root mean square of ‖x‖ at each site: (incoherent, coherent)."""
    low, high = (walk(model, Moments(coherent)) for coherent in (False, True))
    return {site: (low[site], high[site]) for site in low}


def headroom(width: int) -> float:
    """κ = (4d)^¼: with s = ‖x‖/κ the row is in the middle of what FP16 sums without loss.

    Squares keep their precision from about 2⁻¹⁴ on, so the sum of a row does from d·2⁻¹⁴; it
    overflows at 2¹⁶. The middle of the two, in the logarithm, is Σ = 2√d = κ².
    """
    return (4 * width) ** 0.25


def harmless(eps: float) -> float:
    """The largest scale, 128√ε, at which no underflow harms any row (docs/scales.md, 'The cap')."""
    return 128 * eps**0.5


@scale_rules.register("moments")
def moments(model: Transformer) -> dict[str, Any]:
    """The middle of two predicted norms in the middle of FP16's range, from the weights alone.

    s = √(a·b)/κ with a and b the root mean squares of ‖x‖ without and with a common mean, raised to
    128√ε where it is below: up to there underflow is harmless, and more headroom costs nothing.
    """
    norms = weights.norms_by_site(model)
    found = {}
    for site, (low, high) in root_mean_squares(model).items():
        middle = np.sqrt(low * high) / headroom(norms[site].width)
        found[site] = np.maximum(middle, harmless(getattr(norms[site].config, "eps", 0.0)))
    return found
