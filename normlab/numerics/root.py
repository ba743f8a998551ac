"""How a norm unit makes 1/√v: the stage of a datapath between ε and the product."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from normlab.config import field, require
from normlab.numerics.exact import no_contract, sloped
from normlab.numerics.formats import round_to, stage_format
from normlab.registry import choice

GUESSED = ("table", "magic")
KINDS = ("rsqrt", "sqrt", "divide", *GUESSED)
MAGIC = 0x5F3759DF


@dataclass(frozen=True)
class Root:
    """1/√v of a float32 v ≥ 0, and the format of each step's result.

    - `rsqrt`: XLA's own in float32, as where no datapath is named.
    - `sqrt`: √v, rounded, and its reciprocal, rounded.
    - `divide`: √v, rounded; the row is then divided by it, with no reciprocal between.
    - `table`: v = m·4^e with 1 ≤ m < 4; `entries` cells of equal width over each of the octaves
      [1, 2) and [2, 4), half of them each. A cell holds 1/√ of its middle, rounded; or, with
      `interpolate`, the line between its ends is taken.
    - `magic`: the float with the bits 0x5f3759df − (bits(v) ≫ 1).

    After a table or the magic, `newton` steps a ← a·(1.5 − 0.5·v·a²), each product rounded. The
    derivative is that of 1/√v.
    """

    kind: str = field("rsqrt", f"one of {', '.join(KINDS)}")
    format: str | None = field(None, "of every step's result; null: float32")
    entries: int = field(64, "cells of the table, a power of two")
    interpolate: bool = field(False, "take the line between a cell's ends, not one value")
    newton: int = field(0, "Newton steps after the table or the magic")

    def __post_init__(self) -> None:
        choice("kind of root", self.kind, KINDS)
        stage_format(self.format)
        require(
            self.entries >= 2 and self.entries & (self.entries - 1) == 0,
            f"root.entries = {self.entries}: expected a power of two ≥ 2, such as 64",
        )
        given = {"entries": self.entries != 64, "interpolate": self.interpolate}
        for name in (n for n, told in given.items() if told and self.kind != "table"):
            raise ValueError(
                f"root.{name} = {getattr(self, name)}: expected kind 'table', not {self.kind!r}"
            )
        require(self.newton >= 0, f"root.newton = {self.newton}: expected a number ≥ 0, such as 1")
        require(
            not self.newton or self.kind in GUESSED,
            f"root.newton = {self.newton}: expected 0 for kind {self.kind!r}, which is exact",
        )

    def held(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """A step's result, as the unit holds it; XLA would make a rsqrt of 1/√."""
        if self.format is not None:
            return round_to(x, self.format)
        return x if self.kind == "rsqrt" else no_contract(x)

    def inverse(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """1/√v; 0 where v is infinite."""
        if self.kind == "rsqrt":
            return self.held(lax.rsqrt(v))
        if self.kind in ("sqrt", "divide"):
            return self.reciprocal(self.whole(v))
        good = (v >= jnp.finfo(jnp.float32).tiny) & jnp.isfinite(v)
        safe = jnp.where(good, v, 1.0)
        a = self.held(self._table(safe) if self.kind == "table" else _magic(safe))
        for _ in range(self.newton):
            half = self.held(self.held(0.5 * safe) * self.held(a * a))
            a = self.held(a * self.held(1.5 - no_contract(half)))
        exact = lax.rsqrt(v)
        return sloped(jnp.where(good, a, exact), exact)

    def whole(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """√v."""
        return self.held(jnp.sqrt(v))

    def reciprocal(self, r: Float[Array, "..."]) -> Float[Array, "..."]:
        """1/r."""
        return self.held(1.0 / r)

    def _table(self, v: Array) -> Array:
        """Of the cell's value the power of four is taken off and put back exactly."""
        fraction, exponent = jnp.frexp(v)
        odd = exponent % 2  # v = fraction·2^exponent, ½ ≤ fraction < 1
        half = self.entries // 2
        place = (2.0 * fraction - 1.0) * half  # exact
        cell = jnp.floor(place).astype(jnp.int32)
        index = jnp.where(odd == 1, 0, half) + cell
        low, high, middle = map(jnp.asarray, cells(self.entries, self.format))
        if self.interpolate:
            share = place - cell
            value = low[index] + no_contract((high[index] - low[index]) * share)
        else:
            value = middle[index]
        return jnp.ldexp(value, -(exponent - jnp.where(odd == 1, 1, 2)) // 2)


@functools.cache
def cells(entries: int, format: str | None) -> tuple[np.ndarray, ...]:
    """1/√ at the lower and upper end and in the middle of each of a table's cells, rounded once."""
    half = entries // 2
    starts = np.concatenate([1 + np.arange(half) / half, 2 + 2 * np.arange(half) / half])
    widths = np.repeat([1 / half, 2 / half], half)
    ends = (starts, starts + widths, starts + widths / 2)
    with jax.ensure_compile_time_eval():
        found = (round_to(jnp.float32(x**-0.5), format or "fp32") for x in ends)
        return tuple(np.asarray(one) for one in found)


NATIVE = Root()
"""1/√ where no datapath says otherwise."""


def _magic(v: Array) -> Array:
    bits = MAGIC - (lax.bitcast_convert_type(v, jnp.int32) >> 1)
    return lax.bitcast_convert_type(bits, jnp.float32)
