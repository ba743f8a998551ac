"""What ticks of a logarithmic axis say. Needs matplotlib: imported where such an axis is made."""

from matplotlib.ticker import LogFormatterSciNotation

SHORT = 100
"""From end to end; the ticks of a longer axis are powers of ten, which read best as such."""


class Plain(LogFormatterSciNotation):
    """On a short axis 6 and 0.006 in place of 6 × 10⁰ and 6 × 10⁻³."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick at x, empty where it has none."""
        text = super().__call__(x, pos)
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        return f"{x:g}" if text and x >= 1e-4 and high <= SHORT * low else text
