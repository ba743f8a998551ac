"""What leaves a norm unit: a float format, or 8-bit numbers with a scale of their own."""

import re
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from normlab.numerics.exact import divided, no_contract, sloped
from normlab.numerics.formats import FORMATS, as_format, round_to, stage_format
from normlab.numerics.refusal import DoesNotFit
from normlab.registry import UnknownNameError, unknown

CODES = ("int8", "fp8_e5m2", "fp8_e4m3")
"""Of 8 bits, those first whose values the next ones hold, too."""
_PARTS = r"(?P<per>tensor|row|block(?P<size>[1-9]\d*))"
_WRITTEN = re.compile(rf"(?P<code>{'|'.join(CODES)})\.{_PARTS}")


def largest(code: str) -> float:
    """The largest number of 8 bits."""
    return 127.0 if code == "int8" else as_format(code).max


def nearest(x: Array, code: str) -> Array:
    """The nearest number of 8 bits; the largest one for what is beyond it."""
    if code == "int8":
        return jnp.clip(jnp.round(x), -127.0, 127.0)
    return round_to(x, f"{code}.saturate")


@dataclass(frozen=True)
class Output:
    """`FORMAT`, or `int8.row`, `fp8_e4m3.block32`, `int8.tensor`: 8 bits and a scale for each part.

    The scale is the part's largest |y| over the largest code (127, 448, 57,344), in float32; 1
    where that is 0. An infinity or NaN makes NaN of its part. A tensor is all rows of one call:
    then a row's result depends on the others. The derivative is that of y itself.
    """

    text: str

    def __post_init__(self) -> None:
        """Refuse what can't be read."""
        if self._scaled:
            return
        try:
            stage_format(self.text)
        except UnknownNameError:
            scaled = (f"{code}.{part}" for code in CODES for part in ("tensor", "row", "blockN"))
            raise unknown("output", self.text, [*FORMATS, *scaled]) from None

    @property
    def _scaled(self) -> "re.Match[str] | None":
        return _WRITTEN.fullmatch(self.text)

    def parts(self, d: int) -> int | None:
        """Elements of a row of width d that share a scale; None where there is no scale."""
        written = self._scaled
        return written and int(written["size"] or d)

    @property
    def by_row(self) -> "Output":
        """The same of a call with one row: a tensor is that row."""
        return Output(self.text.replace(".tensor", ".row"))

    @property
    def format(self) -> str | None:
        """The float format; None with a scale."""
        return None if self._scaled else self.text

    def __call__(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The values that the codes stand for, in float32."""
        written = self._scaled
        if written is None:
            return round_to(y, self.text)
        size, d = int(written["size"] or 0), y.shape[-1]
        if size and d % size:
            raise DoesNotFit(f"output {self.text!r}: blocks of {size} don't divide the width {d}")
        parts = y.reshape(*y.shape[:-1], -1, size) if size else y
        over = None if written["per"] == "tensor" else -1
        top = jnp.max(jnp.abs(parts), axis=over, keepdims=True)
        scale = top * (1.0 / largest(written["code"]))
        scale = jnp.where(scale == 0, 1.0, scale)
        codes = nearest(divided(parts, scale), written["code"])
        return sloped(no_contract(codes * scale).reshape(y.shape), y)
