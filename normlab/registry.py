"""Names to things: how norms, placements, scale rules and the like are registered and found."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_TOLD = 50
"""Names that an error lists; of more, as of the sites of a deep model, it lists the first."""


@dataclass(frozen=True)
class MethodCard:
    """One row of docs/norms.md, kept beside the thing it describes.

    Args:
        title: the method's name as the field writes it.
        formula: in one line of plain text, in the catalogue's notation.
        source: authors and year, arXiv id, and equation or section; "unconfirmed: …" where a fact
            of it was read in no primary text.
        property: what distinguishes a right implementation from a wrong one, in one sentence.
        test: the test of that property: "tests/norms/test_walk.py::test_name".
    """

    title: str
    formula: str
    source: str
    property: str
    test: str


class UnknownNameError(ValueError):
    """A name that nothing answers to; the message gives the nearest one that something does."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for `name`, which is no `kind`: what was given, what is nearest, what there is."""
    options = sorted(map(str, known))
    small = {option.lower(): option for option in reversed(options)}
    near = difflib.get_close_matches(str(name).lower(), small, n=1, cutoff=0.5)
    hint = f" Did you mean {small[near[0]]!r}?" if near else ""
    told = options if len(options) <= MOST_TOLD else [*options[:8], f"… ({len(options)} in all)"]
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(told)}.")


def choice(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` itself where it is one of `known`; else `UnknownNameError`."""
    if name not in (options := list(known)):
        raise unknown(kind, name, options)
    return name


class Registry(Generic[T]):
    """A dictionary that explains itself: registered by decorator, found by name.

    Args:
        kind: what is registered, in the words of an error message ("norm", "scale rule").
        package: modules of this package are imported before the first look-up, so that a file
            put into it registers itself with no other file touched.
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: put the decorated thing under `name`, which must be free."""

        def put(thing: T) -> T:
            if name in self._things:
                raise ValueError(
                    f"{self.kind} {name!r} is registered already; take another name, or "
                    f"remove({name!r}) it first"
                )
            self._things[name] = thing
            return thing

        return put

    def remove(self, name: str) -> None:
        """Take `name` out again (for tests and notebooks that try a thing twice)."""
        self._things.pop(name)

    def _loaded(self) -> dict[str, T]:
        package, self._package = self._package, None
        if package is not None:
            try:
                for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                    importlib.import_module(f"{package}.{module.name}")
            except BaseException:
                self._package = package  # the next look-up fails as loudly
                raise
        return self._things

    def __getitem__(self, name: str) -> T:
        things = self._loaded()
        if name not in things:
            raise unknown(self.kind, name, things)
        return things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._loaded()))

    def __len__(self) -> int:
        return len(self._loaded())
