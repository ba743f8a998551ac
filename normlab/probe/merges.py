"""A sum in the order of any tree: what it makes of rows, and how it is described."""

from typing import NamedTuple

import numpy as np

from normlab.probe.observe import rounded

Merges = tuple[tuple[int, int], ...]
"""Each add: of two terms, or of earlier adds, which are counted on from the terms."""


class Learned(NamedTuple):
    """A sum in the order of a tree."""

    square: str | None
    format: str
    merges: Merges
    tree: None = None

    @property
    def told(self) -> str:
        """As a report says it."""
        return f"{self.format}, a tree: {described(self.merges)}"

    def total(self, x: np.ndarray) -> np.ndarray:
        """Σ x² of rows [n, d] by it: [n, 1]."""

        def held(value: np.ndarray, to: str | None) -> np.ndarray:
            return value if to in (None, "fp32") else rounded(value, to)

        with np.errstate(all="ignore"):
            terms = held(held(np.square(x, dtype=np.float32), self.square), self.format)
            values = list(terms.T)
            for a, b in self.merges:
                values.append(held(values[a] + values[b], self.format))
        return values[-1][:, None]


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
