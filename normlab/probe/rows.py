"""Rows made to tell arithmetics apart."""

from dataclasses import dataclass

import numpy as np

NEGLIGIBLE = 2.0**-16
"""Of a row's largest element: the square is below half a unit in the last place of any sum here."""
READ = 126
"""Negligible elements of a row, whose outputs tell what 1/rms is."""


@dataclass(frozen=True)
class Design:
    """Makes rows of a width.

    Args:
        d: the width.
        rng: what is drawn comes from it.
        center: the kernel takes the mean off; then rows have a mean of exactly 0 where they must.
        bits: of the significand of the narrowest sum worth swamping.
    """

    d: int
    rng: np.random.Generator
    center: bool = False

    def sizes(self, n: int, low: float, high: float) -> np.ndarray:
        """Numbers [n] with random significands, signs and exponents."""
        sign = self.rng.choice([-1.0, 1.0], n)
        return sign * 2.0 ** np.floor(self.rng.uniform(low, high, n)) * self.rng.uniform(1, 2, n)

    def spikes(self, n: int, low: float, high: float) -> np.ndarray:
        """Rows of one element, or of two that any order but that of lanes adds at once.

        They lie the largest power of two below d apart, and so in one lane of any unit.
        """
        x = np.zeros((n, self.d))
        gap = 1 << (self.d - 1).bit_length() - 1
        first = 2 * self.rng.integers(0, (self.d - gap + 1) // 2, n)
        size = self.sizes(n, low, high)
        every = np.arange(n)
        x[every, first] = size
        if self.center:
            x[every, first + 1] = -size
        else:
            second = size * self.rng.uniform(0.25, 1, n) * (every % 2)
            x[every, first + gap] = second
        return x

    def read(self, x: np.ndarray) -> np.ndarray:
        """Negligible elements put into some of a row's zeros, in pairs ±t."""
        n, pairs = len(x), min(READ, self.d - 4) // 2
        free = (x == 0).reshape(n, -1, 2).all(-1) if self.d % 2 == 0 else None
        if free is None:
            free = (x[:, : self.d - 1] == 0).reshape(n, -1, 2).all(-1)
        keys = np.where(free, self.rng.random(free.shape), 2.0)
        at = 2 * np.argsort(keys, axis=-1)[:, :pairs]
        taken = np.take_along_axis(free, at // 2, -1)
        top = np.abs(x).max(-1, keepdims=True)
        t = np.exp2(np.floor(np.log2(top))) * NEGLIGIBLE * self.rng.uniform(1, 2, at.shape)
        made = x.copy()
        for shift, sign in ((0, 1), (1, -1)):
            old = np.take_along_axis(x, at + shift, -1)
            np.put_along_axis(made, at + shift, np.where(taken, sign * t, old), -1)
        return made

    def dense(self, n: int, low: float, high: float) -> np.ndarray:
        """Normal rows; every other one has a mean, every third one outliers, where they matter."""
        x = self.rng.standard_normal((n, self.d)) * np.abs(self.sizes(n, low, high))[:, None]
        every = np.arange(n)
        x[every % 3 == 1] *= 1 + 9 * (self.rng.random((np.sum(every % 3 == 1), self.d)) < 0.01)
        x[every % 2 == 1] += self.rng.uniform(-2, 2, (np.sum(every % 2 == 1), 1)) * 2.0**low
        return x

    def half(self, n: int, low: float, high: float) -> np.ndarray:
        """Normal rows in every other pair of places; between them elements that are negligible."""
        x = self.dense(n, low, high)
        x[:, np.arange(self.d) // 2 % 2 == 1] = 0
        return self.read(x)

    def swamped(self, n: int, low: float, high: float) -> np.ndarray:
        """A large element at a random place, and others each of which it just absorbs, or not.

        What is left of them tells which of them met before they met it.
        """
        bits = self.rng.choice([8, 11, 24], (n, 1))
        size = np.abs(self.sizes(n, low, high))[:, None]
        small = size * 2.0 ** (-bits / 2) * self.rng.uniform(0.5, 1.0, (n, self.d))
        small *= self.rng.random((n, self.d)) < self.rng.uniform(0.1, 1, (n, 1))
        small *= self.rng.choice([-1.0, 1.0], (n, self.d))
        small[np.arange(n), self.rng.integers(0, self.d, n)] = size[:, 0]
        return small

    def ties(self, n: int, low: float, high: float) -> np.ndarray:
        """Two elements whose squares' sum lies between two float32, others that float64 absorbs.

        Alone each of them is absorbed; those that meet first are not, and lift the sum.
        """
        size = 2.0 ** np.floor(self.rng.uniform(low, high, n))[:, None]
        x = size * 2.0**-28 * self.rng.uniform(1, 2, (n, self.d))
        x *= self.rng.random((n, self.d)) < self.rng.uniform(0.1, 1, (n, 1))
        first, second = self.rng.random((n, self.d)).argsort(-1)[:, :2].T
        x[np.arange(n), first] = size[:, 0]
        x[np.arange(n), second] = size[:, 0] * 2.0**-12
        return x

    def edges(self, dtype: str) -> np.ndarray:
        """Constant rows, zeros, one element, sums that overflow a half or vanish in it."""
        levels = [0, 1, 1.5, 3e-5, 6e-4, 30, 250] + ([6e4] if dtype == "fp16" else [1e5, 1e-12])
        rows = np.outer(levels, np.ones(self.d))
        alternating = np.where(np.arange(self.d) % 2, -1.0, 1.0) * 1.25
        one = np.zeros(self.d)
        one[self.d // 3] = 3.0
        ramp = np.linspace(-1, 1, self.d)
        return np.stack([*rows, alternating, one, ramp])
