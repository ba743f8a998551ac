"""Frozen dataclasses as configuration: described fields, and mappings turned into them.

Every module that can be configured owns a frozen dataclass, the only place of its defaults and of
its checks (`__post_init__`). This file is what they share. It knows nothing of YAML, Hydra or the
command line.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from normlab.registry import unknown

C = TypeVar("C")


def field(default: Any, description: str, *, initial: bool = False) -> Any:
    """A dataclass field with a default and the line that `--help` prints for it.

    Args:
        default: a value, or what makes one (a nested config).
        description: its line.
        initial: it sets what weights start at and nothing else (but whether there are some, which
            a model's structure tells by itself). Two configs are equal that differ in such fields
            alone: as parts of a model's structure they choose one compiled program.
    """
    told: dict[str, Any] = {"metadata": {"help": description}, "compare": not initial}
    if callable(default):
        return dataclasses.field(default_factory=default, **told)
    return dataclasses.field(default=default, **told)


def build(cls: type[C], values: Mapping[str, Any], path: str = "") -> C:
    """`cls` from a (nested) mapping, which may leave out what has a default.

    Args:
        cls: a dataclass. Where it has a classmethod `variant(values)`, that chooses the subclass.
        values: field names to values; nested dataclasses as nested mappings, a string alone for a
            list of one.
        path: where `values` sits in the whole, for messages ("model.").

    Raises:
        UnknownNameError: a key that no field has, with the nearest one.
        TypeError: a value of the wrong type, with its path, the value and what was expected.
        ValueError: what the dataclass itself refuses.
    """
    chosen: Any = cls.variant(values) if hasattr(cls, "variant") else cls  # type: ignore[attr-defined]
    fields = {f.name: f for f in dataclasses.fields(chosen)}
    for key in values:
        if key not in fields:
            raise unknown(f"key of {path[:-1] or 'the config'}", key, fields)
    hints = typing.get_type_hints(chosen)
    built = {k: _convert(hints[k], v, f"{path}{k}") for k, v in values.items()}
    return chosen(**built)


EXPECTED = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = (a for a in args if a is not type(None))
        return _convert(hint, value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return build(hint, value, f"{path}.")  # type: ignore[arg-type]
        if isinstance(value, str) and hasattr(hint, "variant") and "[" in path:
            return build(hint, {"type": value}, f"{path}.")  # type: ignore[arg-type]
        names = ", ".join(f.name for f in dataclasses.fields(hint))
        raise TypeError(f"{path} = {value!r}: expected {path}.FIELD, a field of it: {names}")
    elif origin is tuple:
        if isinstance(value, str):
            return (_convert(args[0], value, path),)
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    said = "a list" if origin is tuple else EXPECTED.get(hint, hint)
    raise TypeError(f"{path} = {value!r}: expected {said}")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON knows it: nested dictionaries, from which `build` makes it again."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def describe(config: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each leaf field of a config as (dotted path, value, description), nested ones included."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}", value, f.metadata.get("help", "")


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`; for a dataclass's `__post_init__`."""
    if not condition:
        raise ValueError(message)
