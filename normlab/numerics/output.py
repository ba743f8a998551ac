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

_CODES = ("int8", "fp8_e4m3", "fp8_e5m2")
_PARTS = r"(?P<per>tensor|row|block(?P<size>[1-9]\d*))"
_WRITTEN = re.compile(rf"(?P<code>{'|'.join(_CODES)})\.{_PARTS}")


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
            scaled = (f"{code}.{part}" for code in _CODES for part in ("tensor", "row", "blockN"))
            raise unknown("output", self.text, [*FORMATS, *scaled]) from None

    @property
    def _scaled(self) -> "re.Match[str] | None":
        return _WRITTEN.fullmatch(self.text)

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
        most = 127.0 if written["code"] == "int8" else as_format(written["code"]).max
        scale = top * (1.0 / most)
        scale = jnp.where(scale == 0, 1.0, scale)
        codes = divided(parts, scale)
        if written["code"] == "int8":
            codes = jnp.clip(jnp.round(codes), -most, most)
        else:
            codes = round_to(codes, f"{written['code']}.saturate")
        return sloped(no_contract(codes * scale).reshape(y.shape), y)
