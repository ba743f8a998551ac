"""What ticks of a logarithmic axis say. Needs matplotlib: imported where such an axis is made."""

from matplotlib.ticker import LogFormatterSciNotation

SHORT = 100
"""From end to end; the ticks of a longer axis are powers of ten, which read best as such."""


WIDE = 1e5
"""From here on a label needs room, and only those of 1, 2 and 5 stand."""


class Plain(LogFormatterSciNotation):
    """On a short axis 6 and 0.006 in place of 6 × 10⁰ and 6 × 10⁻³."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick at x, empty where it has none."""
        text = super().__call__(x, pos)
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        if not text or x < 1e-4 or high > SHORT * low:
            return text
        wide = x >= WIDE and f"{x:e}"[0] not in "125"
        return "" if wide else f"{x:g}"
