"""A sum in the order of any tree: what it makes of rows, and how it is described."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from normlab.numerics import Mean
from normlab.probe.observe import rounded
from normlab.probe.stages import held as stage

Merges = tuple[tuple[int, int], ...]
"""Each add: of two terms, or of earlier adds, which are counted on from the terms."""
CLIPPED = ".clipped"
_MEANS = {
    "means": "Σx²/d − μ²",
    "fused": "Σx²/d − μ², a fused multiply-add with μ²",
    "shared": "Σx²·(1/d) − μ², a fused multiply-add with Σx²",
}
VARIANCES = {"terms": "Σx² − d·μ²"} | _MEANS
VARIANCES |= {name + CLIPPED: f"{told}, at least 0" for name, told in _MEANS.items()}
"""Variances by one pass."""


class Learned(NamedTuple):
    """A sum in the order of a tree, and what is made of it.

    Args:
        square: format of the squares.
        format: of the adds.
        merges: the tree.
        fused: a square that meets a sum does so in a fused multiply-add. Of two squares that meet
            the `later` is not rounded, or the `earlier`. Empty: every square is rounded.
        variance: of a norm that takes the mean off one of VARIANCES; None: by two sums.
        away: x − Σx · round(1/d) is a fused multiply-add.
    """

    square: str | None
    format: str
    merges: Merges
    fused: str = ""
    variance: str | None = None
    away: bool = False
    tree: None = None

    @property
    def told(self) -> str:
        """As a report says it."""
        made = f"{self.format}, a tree: {described(self.merges)}"
        made += f", squares fused with adds ({self.fused} ones first)" if self.fused else ""
        made += f"; {VARIANCES[self.variance]}" if self.variance else ""
        return made + ("; x − μ fused with the mean" if self.away else "")

    @property
    def averaged(self) -> bool:
        """As of `Sum`."""
        return self.variance not in (None, "terms")

    def statistic(
        self, x: np.ndarray, input: str | None, mean: Mean, center: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See `Sum.statistic`."""
        z, d = np.asarray(stage(x, input)), x.shape[-1]

        def share(total: np.ndarray) -> np.ndarray:
            return np.asarray(stage(mean.of(jnp.asarray(total), d), mean.format))

        with np.errstate(all="ignore"):
            if not center:
                return z, self.of_squares(z), None
            added = self.added(list(z.T))
            middle, part = share(added), np.array(1 / d, np.float32)
            away = fma(-added, part, z) if self.away else z - middle
            if self.variance is None:
                return away, self.of_squares(away), middle
            total = self.of_squares(z)
            match self.variance.removesuffix(CLIPPED):
                case "terms":
                    made = total - np.float32(d) * (middle * middle)
                case "means":
                    made = share(total) - middle * middle
                case "fused":
                    made = fma(-middle, middle, share(total))
                case "shared":
                    made = fma(total, part, -(middle * middle))
            clipped = self.variance.endswith(CLIPPED)
            return away, np.maximum(made, np.float32(0)) if clipped else made, middle

    def of_squares(self, z: np.ndarray) -> np.ndarray:
        """Σ z² of rows [n, d]: [n, 1]."""
        with np.errstate(all="ignore"):
            terms = self._held(np.square(z, dtype=np.float32), self.square)
            return self.added(list(self._held(terms, self.format).T), z if self.fused else None)

    def added(self, values: list[np.ndarray], of: np.ndarray | None = None) -> np.ndarray:
        """Σ of d terms [n], which are squares of `of` where those are not rounded: [n, 1]."""
        d = len(values)
        for a, b in self.merges:
            if of is not None and min(a, b) < d:
                exact = min(a, b) if max(a, b) >= d else self._exact(a, b)
                rest = values[a + b - exact]
                values.append(fma(of[:, exact], of[:, exact], rest))
            else:
                values.append(self._held(values[a] + values[b], self.format))
        return values[-1][:, None]

    def _exact(self, a: int, b: int) -> int:
        return max(a, b) if self.fused == "later" else min(a, b)

    @staticmethod
    def _held(value: np.ndarray, to: str | None) -> np.ndarray:
        return value if to in (None, "fp32") else rounded(value, to)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """As `normlab.numerics.exact.fma`, in NumPy: one operation of many, not one program."""
    product, wide = np.float64(a) * np.float64(b), np.float64(c)
    near = product + wide
    part = near - product
    lost = (product - (near - part)) + (wide - part)
    inward = (lost > 0) != (near > 0)
    odd = ((near.view(np.int64) - inward) | 1).view(np.float64)
    return np.where(np.isfinite(near) & (lost != 0), odd, near).astype(np.float32)


def described(merges: Merges) -> str:
    """How many chains of which stride, and how high the tree is."""
    d = len(merges) + 1
    members = [[i] for i in range(d)]
    chain, height = [True] * d, [0] * d
    for a, b in merges:
        members.append(members[a] + members[b])
        chain.append(chain[a] and b < d)
        height.append(1 + max(height[a], height[b]))
    inner = {node for i, pair in enumerate(merges) if chain[d + i] for node in pair}
    tops = [i for i in range(d, len(members)) if chain[i] and i not in inner]
    kinds: dict[tuple[int, str], int] = {}
    for top in tops:
        steps = set(np.diff(members[top]).tolist())
        stride = f"stride {steps.pop()}" if len(steps) == 1 else "several strides"
        key = len(members[top]), stride
        kinds[key] = kinds.get(key, 0) + 1
    most = sorted(kinds.items(), key=lambda item: -item[1] * item[0][0])[:3]
    told = ", ".join(f"{n} chains of {length} terms ({stride})" for (length, stride), n in most)
    return f"{told}; {height[-1]} adds deep"
