"""Where a model leaves a format: the size of every tensor that a runtime stores, in words."""

from dataclasses import dataclass

from normlab.results.formats import grid
from normlab.results.table import number

ROWS = 15
"""Of the table."""
STORED = (
    "what a runtime stores: branch outputs (….out), the stream after each branch, norms' outputs, "
    "q, k, v, products and scores (masked ones left out), hidden units, logits"
)


@dataclass(frozen=True)
class TensorRange:
    """The size of one tensor over all tokens read.

    Args:
        name: where it is: "blocks.2.mlp.stream"; "….sum" is a norm's Σx² (Σ(x − μ)²), before any
            scale.
        largest: the largest |x|; inf or nan where float32 itself fails.
        headroom: bits from it to the format's largest value; negative beyond it.
        window, position: of the token with the largest, from 0.
        token: its text.
        elements: share of elements beyond the format's largest value.
        rows: share of tokens with such an element.
    """

    name: str
    largest: float
    headroom: float
    window: int
    position: int
    token: str
    elements: float
    rows: float

    @property
    def is_sum(self) -> bool:
        """Whether it is a norm's sum of squares, which the norm's unit alone sees."""
        return self.name.endswith(".sum")

    @property
    def fits(self) -> bool:
        """Whether every element is in range."""
        return self.rows == 0


@dataclass(frozen=True)
class RangeReport:
    """All tensors in forward order, and what would bring them into range.

    Args:
        model: its name.
        format: the format asked about.
        tokens: tokens read.
        tensors: in forward order.
        rescale: the factor of the stream with which what is stored fits; None where none is needed
            or none helps.
        rule: the scale rule with which norms' sums fit as well; None likewise.
        left: names that stay out of range with both.
        perplexity: of the pass, in fp32.
        cured: that with the cure in the format: weights, all that is stored, and norms' sums; None
            where nothing was to be cured, or not all can be.
        covers: what the tensors are that are no sums.
    """

    model: str
    format: str
    tokens: int
    tensors: list[TensorRange]
    rescale: float | None
    rule: str | None
    left: list[str]
    perplexity: float
    cured: float | None = None
    covers: str = STORED

    def out(self, sums: bool) -> list[TensorRange]:
        """Those out of range: norms' sums, or what is stored."""
        return [t for t in self.tensors if not t.fits and t.is_sum == sums]


def report(found: RangeReport) -> str:
    """The answer in the first lines, then the tensors that leave the range or come nearest."""
    return "\n\n".join([answer(found), grid(lines(found)), legend(found)])


def lines(found: RangeReport) -> list[list[str]]:
    """A head, and a line for each tensor of the table."""
    chosen = {t.name for t in sorted(found.tensors, key=lambda t: t.headroom)[:ROWS]}
    for out in (found.out(sums=False), found.out(sums=True)):
        chosen |= {t.name for t in out[:3]}
    head = ["tensor", "largest |x|", "headroom, bits", "its token", "elements out", "tokens out"]
    return [head, *(_row(t) for t in found.tensors if t.name in chosen)]


def answer(found: RangeReport) -> str:
    """Where it overflows first, and what cures that."""
    stored, sums = found.out(sums=False), found.out(sums=True)
    if not stored and not sums:
        least = min(found.tensors, key=lambda t: t.headroom)
        return (
            f"{found.model}: every tensor fits {found.format}. The nearest to its edge is "
            f"{least.name}, {least.headroom:.1f} bits below."
        )
    said = f"{found.model}: every stored tensor fits {found.format}."
    if stored:
        said = f"{found.model} leaves {found.format} first at {_where(stored[0])}."
    if sums:
        total = sum(t.is_sum for t in found.tensors)
        said += (
            f"\nNorms' sums leave it at {len(sums)} of {total} sites, first at {_where(sums[0])}."
        )
    cures = [f"transform=rescale:{found.rescale!r}"] if found.rescale else []
    cures += [f"the scale rule {found.rule} for norms' sums"] if found.rule else []
    if cures:
        said += f"\nSmallest cure: {' and '.join(cures)}."
    if found.cured is not None:
        said += (
            f"\nRun in {found.format} with it (weights, all that is stored, norms' sums): "
            f"perplexity {number(found.cured)}, in fp32 {number(found.perplexity)}."
        )
    if found.left:
        said += f"\nOut of range still: {', '.join(found.left[:8])}{' …' * (len(found.left) > 8)}."
    return said


def _where(t: TensorRange) -> str:
    place = f"token {t.token!r}, window {t.window}, position {t.position}"
    return f"{t.name}: up to {t.largest:,.5g} ({place})"


def legend(found: RangeReport) -> str:
    """What the table covers."""
    return (
        f"One float32 pass over {found.tokens:,} tokens and {len(found.tensors)} tensors, "
        f"{sum(not t.fits for t in found.tensors)} of them out of range. The table has the first "
        f"ones and the {ROWS} with least headroom, in forward order; ranges.json has all. "
        f"….sum is a norm's Σx², without any scale. The other tensors are {found.covers}."
    )


def _row(t: TensorRange) -> list[str]:
    size = [f"{t.largest:,.5g}", f"{t.headroom:+.1f}"]
    return [t.name, *size, repr(t.token), _share(t.elements), _share(t.rows)]


def _share(value: float) -> str:
    return f"{100 * value:.3g} %" if value else "0"
