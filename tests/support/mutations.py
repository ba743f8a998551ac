"""Seeded mutations of files: bytes, cuts, and values of another type in JSON."""

import json

import numpy as np

WRONG = [
    None, True, False, 0, -1, 1, 2, 3, 7, 260.5, 0.5, -0.5, 1e-30, 1e30, 2**24, 2**31, 2**32 - 1,
    2**63, 10**400, float("nan"), float("inf"), "", "x", "1", "é", "\ud800", [], [1], [None], [[]],
    {}, {"a": 1},
]  # fmt: skip
LETTERS = b'0123456789 "abex_.,:-[]{}'
SPECIAL = (0, 1, 2, 8, 31, 32, 33, 255, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)


class Mutator:
    """Changes of one kind after another, the same for one seed.

    Args:
        seed: of the choices.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def below(self, n):
        """A whole number from 0 to n − 1."""
        return int(self.rng.integers(n))

    def one(self, values):
        """One of several values."""
        return values[self.below(len(values))]

    def flips(self, data, size=None):
        """One to three bytes of the first `size` are others, any or such as JSON has."""
        made = bytearray(data)
        for _ in range(1 + self.below(3)):
            at = self.below(size or len(made))
            made[at] = self.one([made[at] ^ (1 + self.below(255)), self.one(LETTERS)])
        return bytes(made)

    def cut(self, data, size=None):
        """The end is missing, or a span is, or stands twice."""
        size = size or len(data)
        at, length = self.below(size), 1 + self.below(64)
        kept, after = data[:at], data[at + length :]
        return self.one([kept, kept + after, kept + 2 * data[at : at + length] + after])

    def patch(self, data, size):
        """Four or eight bytes of the first `size` are a number that is often wrong."""
        width, at = self.one([4, 8]), self.below(size)
        value = (self.one(SPECIAL) % 2 ** (8 * width)).to_bytes(width, "little")
        return (data[:at] + value + data[at + width :])[: len(data)]

    def json(self, content):
        """JSON text in which one value, anywhere, is another, missing, moved or there twice."""
        made = json.loads(json.dumps(content))
        inner = self._inside(made)
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        if not keys:
            return json.dumps(self.one(WRONG))
        key = self.one(list(keys))
        what = self.below(8)
        if what == 0:
            del inner[key]
        elif what == 1 and isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        elif what == 2:
            inner[key] = self._anywhere(made)
        elif what == 3 and isinstance(inner, dict):
            return self._twice(made, inner, key)
        else:
            inner[key] = self.one(WRONG)
        return json.dumps(made)

    def _inside(self, content):
        """An object or a list in it: one level after another, each child of a level as likely."""
        deeper = content.values() if isinstance(content, dict) else content
        found = [v for v in deeper if isinstance(v, (dict, list)) and v]
        return self._inside(self.one(found)) if found and self.below(2) else content

    def _anywhere(self, content):
        inner = self._inside(content)
        return json.loads(
            json.dumps(self.one(list(inner.values() if isinstance(inner, dict) else inner)))
        )

    def _twice(self, whole, inner, key):
        marked = f"{key}\0twice"
        inner[marked] = self.one([inner[key], *WRONG])
        return json.dumps(whole).replace(json.dumps(marked), json.dumps(key))
