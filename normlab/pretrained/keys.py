"""What a checkpoint says of itself: a wrong value is an error that names its key and its file."""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from normlab.pretrained.source import CheckpointError
from normlab.registry import UnknownNameError, choice

MOST = 2**24
"""The largest size that is read: beyond it a number is a mistake, and memory would pay for it."""
LARGEST = float(np.finfo(np.float32).max)
_NO_DEFAULT: Any = object()


class Keys:
    """A config.json's content, or a GGUF file's metadata.

    A key that is null counts as missing. A missing one without a default, and a value of the wrong
    type or out of bounds, is a `CheckpointError`.

    Args:
        values: the keys.
        where: what they are of, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where

    def __getitem__(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.where} has no {key!r}")
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: Any = _NO_DEFAULT, most: int = MOST) -> int:
        """A whole number, 1 to `most`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number, 1 to {most}")
        return value

    def number(self, key: str, default: Any = _NO_DEFAULT, *, zero: bool = False) -> float:
        """A number > 0, or ≥ 0 with `zero`, that float32 has."""
        value = self._value(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= LARGEST or (value == 0 and not zero):
            raise self._wrong(key, value, f"a number {'≥' if zero else '>'} 0, at most 3.4e38")
        return float(value)

    def flag(self, key: str, default: Any = _NO_DEFAULT) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def word(self, key: str, known: Iterable[str], default: Any = _NO_DEFAULT) -> str:
        """One of `known`."""
        try:
            return choice(key, self._value(key, default), known)
        except UnknownNameError as error:
            raise CheckpointError(f"{self.where}: {error}") from None

    def replaced(self, by: Mapping[str, Any]) -> "Keys":
        """The same keys with others in the place of some."""
        return Keys(ChainMap(dict(by), self.values), self.where)  # type: ignore[arg-type]

    def part(self, key: str) -> "Keys":
        """The keys below a key; none where it is missing."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "keys and values")
        return Keys(value, f"{key} of {self.where}")

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a value that we would silently compute otherwise; missing is fine."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{self.where} has {key} = {value!r}, which is not supported (only {allowed[0]!r})"
            )

    def _value(self, key: str, default: Any) -> Any:
        return self[key] if default is _NO_DEFAULT else self.get(key, default)

    def _wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where} has {key} = {_short(value)}: expected {expected}")


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 80 else f"{said[:76]} ..."
