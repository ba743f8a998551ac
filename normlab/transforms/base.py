"""What every transform has in common, and how one is named: "fold", "recentre+rescale:0.25"."""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from normlab.model import Transformer
from normlab.norms import norms
from normlab.registry import MethodCard, Registry, unknown

transforms: Registry[type["Transform"]] = Registry("transform", package="normlab.transforms")
"""Every transform by name. A file put into this package registers its classes by itself."""

NOTHING = "none"
"""The name of the empty chain: the model as it is."""

AUTO = "rescale:auto"
"""A step whose number is found on text; `normlab.evaluation` puts it in."""


class DoesNotApply(ValueError):
    """A transform was asked of a model that it can't rewrite; the message says why."""


@dataclass(frozen=True)
class Transform:
    """A map from a model to a new one: the base class of every transform.

    A subclass registers itself (`@transforms.register("name")`) and implements `__call__`. Its
    fields, numbers, are its arguments: `rescale:0.25`. The model given is left as it was, and
    arrays that don't change are shared with it.
    """

    card: ClassVar[MethodCard]

    def __call__(self, model: Transformer) -> Transformer:
        """The rewritten model.

        Raises:
            DoesNotApply: the rewrite would not be exact for this norm type or placement.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Chain:
    """Transforms one after another, and the text that names them."""

    text: str
    steps: tuple[Callable[[Transformer], Transformer], ...] = ()

    def __call__(self, model: Transformer) -> Transformer:
        """The model after all steps; without any, the model itself."""
        return functools.reduce(lambda made, step: step(made), self.steps, model)

    def __str__(self) -> str:
        """What `parse` reads, each argument in its shortest form."""
        return self.text


def parse(text: str) -> Chain:
    """The chain that a text names: steps joined by "+", arguments after colons, or "none".

    A step is a registered transform or a registered norm type. The latter swaps every norm for one
    of that type that takes over its weights (see `normlab.transforms.swap`).

    Raises:
        ValueError: an unknown name, with the nearest one, or arguments that don't fit.
    """
    if text.strip() == NOTHING:
        return Chain(NOTHING)
    names, steps = zip(*(_step(part) for part in text.split("+")), strict=True)
    return Chain("+".join(names), steps)


def check(text: str) -> None:
    """Raise what `parse` does, but for steps whose number is to be found yet."""
    parse(text.replace(AUTO, "rescale:1"))


def apply(model: Transformer, text: str) -> Transformer:
    """`model` after the chain that `text` names: `apply(model, "recentre+fold")`."""
    return parse(text)(model)


def _step(text: str) -> tuple[str, Callable[[Transformer], Transformer]]:
    name, *given = re.sub(r"\((.*)\)$", r":\1", text.strip()).split(":")  # brackets: old records
    if name not in transforms and (name not in norms or name == NOTHING):
        raise unknown("transform", name, [*transforms, *(n for n in norms if n != NOTHING)])
    if name not in transforms:
        if given:
            raise ValueError(f"transform {text.strip()!r}: a norm type takes no arguments")
        return name, _swap(name)
    fields = [f.name for f in dataclasses.fields(transforms[name])]
    usage = ":".join([name, *fields])
    if len(given) != len(fields):
        raise ValueError(f"transform {text.strip()!r}: expected {usage}")
    try:
        values = [float(part) for part in given]
    except ValueError as error:
        raise ValueError(f"transform {text.strip()!r}: expected numbers, {usage}") from error
    shown = [f"{value:.17g}".replace("e+", "e") for value in values]
    return ":".join([name, *shown]), transforms[name](*values)


def _swap(name: str) -> Callable[[Transformer], Transformer]:
    from normlab.transforms.swap import swap

    def step(model: Transformer) -> Transformer:
        try:
            return swap(model, name)
        except ValueError as error:
            raise DoesNotApply(str(error)) from error

    return step
