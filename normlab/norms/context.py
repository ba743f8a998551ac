"""What a norm is told beside its rows."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from normlab.numerics import Accumulator


@dataclass(frozen=True, eq=False)
class NormContext:
    """One call's instructions to one norm; by default plain float32, outside training.

    Args:
        acc: the arithmetic, and the static scale s.
        entered: inside a block, the rows [b, l, d] that entered it, and its attention; for a norm
            that estimates its statistic from them.
        progress: the share of the training that is done, 0 at the first step; None outside of it.
            With one, the rows [b, l, *heads, d] are sequences in order, and a norm may update its
            `NormState`.
    """

    acc: Accumulator = Accumulator()
    entered: tuple[Array, Any] | None = None
    progress: Float[Array, ""] | None = None


PLAIN = NormContext()
