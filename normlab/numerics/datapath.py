"""Datapath: every stage of a norm unit, and the format of each (docs/datapath.md)."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
from jax import Array

from normlab.config import field, require
from normlab.numerics import welford
from normlab.numerics.exact import divided
from normlab.numerics.formats import FloatFormat, as_format, round_to, stage_format
from normlab.numerics.orders import Order
from normlab.numerics.output import Output
from normlab.numerics.precision import Precision
from normlab.numerics.refusal import DoesNotFit
from normlab.numerics.root import Root
from normlab.registry import choice

MEANS = ("reciprocal", "divide", "shift")
FORMATS_OF = ("input", "square", "eps", "product", "stored", "one_plus", "weight", "bias")
"""Stages that are a format, which float32 holds."""


@dataclass(frozen=True)
class Mean:
    """How a sum becomes a mean: Σ · round(1/d), Σ / d, or Σ shifted by log₂ d."""

    kind: str = field("reciprocal", f"one of {', '.join(MEANS)}")
    format: str | None = field(None, "of 1/d and of the mean; null: float32; fp64 of an fp64 sum")

    def __post_init__(self) -> None:
        choice("kind of mean", self.kind, MEANS)
        as_format(self.format or "fp32")

    @property
    def wide(self) -> bool:
        """Whether a sum in float64 is made a mean before it is rounded to float32."""
        return as_format(self.format or "fp32").is_float64

    def share(self, terms: int) -> float:
        """What a sum in float64 is divided by, or, below 1, multiplied by."""
        self._check_shift(terms)
        return float(terms) if self.kind == "divide" else 1.0 / terms

    def of(self, total: Array, terms: int) -> Array:
        """A total over its terms, before it is held in the format."""
        match self.kind:
            case "divide":
                return divided(total, terms)
            case "shift":
                self._check_shift(terms)
        share = 1.0 / terms
        return total * (share if self.format is None else round_to(jnp.float32(share), self.format))

    def _check_shift(self, terms: int) -> None:
        if self.kind == "shift" and terms & (terms - 1):
            raise DoesNotFit(f"mean.kind = 'shift' on rows of {terms}: expected 2ᵏ")


@dataclass(frozen=True)
class Datapath:
    """What a norm unit does to a row, stage by stage; a stage that isn't named is float32.

    The row is rounded to `input`; divided by the static scale; squared, each square rounded to
    `square`. The squares are summed as the precision `sum` says, the tree of `lanesK` in the format
    `tree`, and made a mean. Then ε joins it, rounded to `eps`, the sum of both rounded; its root is
    taken. The row times it is rounded to `product`, multiplied by γ, rounded to `weight`, added to
    β, rounded to `bias`, and leaves in `output`. Where a weight is stored as w, γ = 1 + w is made
    in `one_plus`. A static scale and ε/s² apply to each. `sum` alone
    is a precision.
    """

    sum: str = field("fp32", "a precision string: format, order, options")
    input: str | None = field(None, "format of the row as it comes")
    mirrored: bool = field(False, "of a norm that doesn't centre: [x, −x] is summed, twice as long")
    square: str | None = field(None, "format of x², before it enters the adder")
    tree: str | None = field(None, "of `lanesK`: the format in which the K sums are added")
    mean: Mean = field(Mean(), "how Σ becomes its mean")
    variance: str | None = field(None, "of a norm that centres: welford8x2; null: by two sums")
    fused: bool = field(False, "of such: x·r − μ·r and ·γ + β are a fused multiply-add each")
    eps: str | None = field(None, "format of ε and of mean + ε")
    root: Root = field(Root(), "how 1/√ is made")
    product: str | None = field(None, "format of x · 1/rms")
    stored: str | None = field(None, "format that γ (or w, of 1 + w) and β are stored in")
    one_plus: str | None = field(None, "of a weight stored as w: the format of w and of 1 + w")
    weight: str | None = field(None, "format of γ (of 1 + w) and of the product with it")
    cast_first: bool = field(False, "the row is cast to `output` before γ, too (Llama's code)")
    bias: str | None = field(None, "format of β and of the sum with it")
    output: str | None = field(None, "what leaves: a format, int8.row, fp8_e4m3.block32, …")
    source: str = field("", "where it is from, and what could not be confirmed")
    name: str = field("", "what it is registered as")

    def __post_init__(self) -> None:
        """Refuse a stage that can't be read, before anything is computed."""
        as_format(self.tree or "fp32")
        for stage in FORMATS_OF:
            stage_format(getattr(self, stage))
        Output(self.output or "fp32")
        require(
            not self.cast_first or self.output is not None,
            "cast_first = True: expected an output beside it, which the row is cast to before γ",
        )
        order = self.precision.summation
        require(
            self.tree is None or order.has_lanes,
            f"tree = {self.tree!r} beside the order {order}: expected an order lanesK, whose sums "
            "a tree adds",
        )
        if self.variance is not None:
            welford.lanes(self.variance)
        require(
            not self.fused or self.variance is not None,
            "fused = True: expected a variance beside it, such as welford8x2",
        )
        require(
            not self.mean.wide or self.format.is_float64,
            f"mean.format = 'fp64' beside sum = {self.sum!r}: expected a sum in fp64",
        )

    @cached_property
    def precision(self) -> Precision:
        """How the statistic is accumulated."""
        return Precision.parse(self.sum)

    @property
    def format(self) -> FloatFormat:
        """Of the sum: the edges that range counts ask for."""
        return self.precision.format

    @property
    def row(self) -> FloatFormat:
        """Of the formats of the input and of the sum the one that ends first."""
        return min(self.format, as_format(self.input or "fp32"), key=lambda to: to.max)

    @property
    def summation(self) -> Order:
        """The order of the sum."""
        return self.precision.summation

    @property
    def summed(self) -> str:
        """The order of the sum as a record says it."""
        return self.precision.summed

    @property
    def makes_gamma(self) -> bool:
        """Whether γ is another than the weight that is stored, or 1 + w in float32."""
        return self.stored is not None or self.one_plus is not None

    @property
    def plain(self) -> bool:
        """Whether every stage is float32 as XLA has it."""
        return self.precision.plain and not self.stages

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are named, but for the sum."""
        apart = ("sum", "source", "name")
        named = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return tuple(f.name for f in named if f.name not in apart)

    def __str__(self) -> str:
        """Its name, by which `arithmetic` finds it; that of the precision where it has none."""
        return self.name or self.sum
