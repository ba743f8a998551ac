"""Precision: how a norm accumulates its statistic, written as one string."""

import dataclasses

from normlab.config import require
from normlab.numerics.formats import FORMAT_OPTIONS, FloatFormat
from normlab.numerics.orders import Order
from normlab.registry import choice

FP32 = FloatFormat.parse("fp32")
DEFAULT_ORDER = Order("pairwise")
_OF_HALVES = ("blocks", "exact_then_round")
"""Orders that add exactly before they round: float64 holds no exact sum of float32 squares."""
_STATISTIC = ("onepass", "input", "mean")
_OF_FORMAT = tuple(option.removesuffix("SEED") for option in FORMAT_OPTIONS)


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a norm accumulates: `FORMAT[:ORDER]`, each with options after dots.

    Hashable, so that it can be a static argument of `jax.jit`. `Precision.parse(str(p)) == p`.
    """

    format: FloatFormat = FP32
    order: Order | None = None  # None: the default, and not printed
    onepass: bool = False  # LayerNorm's variance as Σx²/d - μ² instead of Σ(x-μ)²/d
    input: bool = False  # the row that enters the norm is rounded to the format too
    mean: bool = False  # each term is divided by d before it is added

    def __post_init__(self) -> None:
        """Refuse what a float64 accumulator has not."""
        if self.format.is_float64:
            require(
                self.summation.name not in _OF_HALVES and not self.mean and not self.onepass,
                f"{self}: expected fp64 with no option but input, in one of the orders sequential, "
                "pairwise, lanesK, cascadeK, tree_POSTFIX",
            )

    @classmethod
    def parse(cls, text: "str | Precision") -> "Precision":
        """Read a precision string; a precision is returned as it is.

        Raises:
            TypeError: neither a string nor a precision.
            ValueError: naming the part that cannot be read, what was expected and the nearest.
        """
        if isinstance(text, Precision):
            return text
        if not isinstance(text, str):
            raise TypeError(f"precision {text!r}: expected a string, such as 'fp16:pairwise'")
        try:
            return cls._read(text)
        except ValueError as error:
            raise ValueError(f"precision {text!r}: {error}") from None

    @classmethod
    def _read(cls, text: str) -> "Precision":
        written, plus, rule = text.partition("+")
        require(
            not plus,
            f"no scale rule here, for its scales are given beside it: expected {written!r}, "
            f"and scales=normlab.scaling.scales(model, {rule!r})",
        )
        head, colon, tail = text.partition(":")
        head_options = head.split(".")
        order, *order_options = tail.split(".")
        for option in head_options[1:]:
            if not option.startswith("stochastic"):
                choice("option", option, (*FORMAT_OPTIONS, *_STATISTIC))
        for option in order_options:
            if option.startswith(_OF_FORMAT):
                raise ValueError(f"{option!r} is an option of the format: write {head}.{option}:…")
            choice("option of the order", option, _STATISTIC)
        statistic = [o for o in head_options if o in _STATISTIC] + order_options
        return cls(
            format=FloatFormat.parse(".".join(o for o in head_options if o not in _STATISTIC)),
            order=Order.parse(order) if colon else None,
            **dict.fromkeys(statistic, True),
        )

    def __str__(self) -> str:
        """The string that `parse` reads, with options in their canonical order."""
        head = str(self.format) if self.order is None else f"{self.format}:{self.order}"
        options = [option for option in _STATISTIC if getattr(self, option)]
        return ".".join([head, *options])

    @property
    def row(self) -> FloatFormat:
        """Of the two formats that an input has to fit, the narrower: here there is one."""
        return self.format

    @property
    def summation(self) -> Order:
        """The order of summation, the default where none is written."""
        return self.order or DEFAULT_ORDER

    @property
    def summed(self) -> str:
        """The order of summation as a record says it."""
        return "native float32" if self.plain else str(self.summation)

    @property
    def plain(self) -> bool:
        """True where a sum is XLA's own float32 sum: `fp32` with no order written."""
        return self.format.is_float32 and self.order is None
