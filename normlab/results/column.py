"""A column of a table: a precision, the scale rule that goes with it, what activations are in."""

import dataclasses
import re
from typing import Any

from normlab.config import require
from normlab.numerics import Arithmetic, Datapath, FloatFormat, Precision, arithmetic
from normlab.registry import choice

HALF = ("fp16", "bf16")
"""Formats that a runtime may hold a whole model in."""
_RULE = re.compile(r"[a-z][a-z0-9_-]*")
_SITE = re.compile(r"[a-z0-9_.*?]+")
MOST_SHOWN = 3
"""Sites that a title names."""


@dataclasses.dataclass(frozen=True)
class Column:
    """`PRECISION[+RULE[.pow2]][@HALF][/SITE…]`, such as `fp16:lanes8+slanc`, `fp16/norm_final`.

    `Column.parse(str(c)) == c`.

    Args:
        precision: how a norm accumulates; or a datapath, by whose name it is written.
        rule: the scale rule, by its registered name (`normlab.scaling`); None: no scales.
        pow2: the rule's scales rounded to powers of two.
        activations: one of `HALF`, the format of all that a runtime stores; None: float32.
        keep_fp32: sites whose norm stays in float32, each a name or a pattern (`blocks.2.*`).
    """

    precision: Arithmetic = Precision()
    rule: str | None = None
    pow2: bool = False
    activations: str | None = None
    keep_fp32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a rule that could not be read back."""
        require(
            self.rule is None or bool(_RULE.fullmatch(self.rule)),
            f"scale rule {self.rule!r}: expected a name in lower case, such as 'slanc'",
        )
        require(
            not self.pow2 or self.rule is not None,
            "option pow2: expected a scale rule before it, such as '+slanc.pow2'",
        )
        if self.activations is not None:
            choice("format of activations", self.activations, HALF)
        for pattern in self.keep_fp32:
            require(
                bool(_SITE.fullmatch(pattern)),
                f"site {pattern!r}: expected a name or a pattern, such as norm_final or blocks.2.*",
            )

    @classmethod
    def parse(cls, text: str) -> "Column":
        """Read a column's name.

        Raises:
            ValueError: naming the part that cannot be read, what was expected and the nearest.
        """
        whole, *kept = text.split("/")
        norms, at, activations = whole.partition("@")
        written, plus, scaling = norms.partition("+")
        precision = arithmetic(written)
        rule, *options = scaling.split(".")
        try:
            for option in options:
                choice("option of the scale rule", option, ("pow2",))
            made = activations if at else None
            return cls(precision, rule if plus else None, bool(options), made, tuple(kept))
        except ValueError as error:
            raise ValueError(f"precision {text!r}: {error}") from None

    @property
    def datapath(self) -> dict[str, Any] | None:
        """Every stage, where the precision is a datapath's name."""
        named = isinstance(self.precision, Datapath)
        return dataclasses.asdict(self.precision) if named else None

    def __str__(self) -> str:
        """The text that `parse` reads, with options in their canonical order."""
        rule = "" if self.rule is None else f"+{self.rule}{'.pow2' * self.pow2}"
        held = f"@{self.activations}" if self.activations else ""
        return "/".join([f"{self.precision}{rule}{held}", *self.keep_fp32])

    @property
    def short(self) -> str:
        """For a title: where many sites stay in float32, how many patterns there are."""
        if len(self.keep_fp32) <= MOST_SHOWN:
            return str(self)
        return f"{dataclasses.replace(self, keep_fp32=())}/{len(self.keep_fp32)} in fp32"

    @property
    def held(self) -> FloatFormat | None:
        """The format of the activations."""
        return FloatFormat.parse(self.activations) if self.activations else None
