"""Charts as inline SVG: lines with their points, ranges, marks; hover values ride along as data."""

from collections.abc import Sequence
from dataclasses import dataclass

from normlab.report.axes import Axis
from normlab.report.markup import Markup, element

LEFT, RIGHT, TOP = 58, 12, 14
LOOKS = 7
"""Colours of the style sheet; line number LOOKS + i is drawn as i is, with other dashes."""

POINTS = 400
"""A line keeps at most about so many points, evenly taken, and its last one."""


@dataclass(frozen=True)
class Line:
    """A line through (x, y) points.

    Args:
        name: what its hover values begin with.
        points: in order of x.
        look: which colour, from 0.
        dots: its points are shown.
    """

    name: str
    points: Sequence[tuple[float, float]]
    look: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """The area of a chart between its axes, in units of the SVG."""

    x: Axis
    y: Axis
    width: int = 560
    height: int = 300
    bottom: int = 46

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        across = LEFT + self.x.at(x) * (self.width - LEFT - RIGHT)
        return across, self.height - self.bottom - self.y.at(y) * (self.height - self.bottom - TOP)

    def svg(self, title: str, *marks: Markup, slanted: bool = False) -> Markup:
        """The chart: `marks` above grid and axes, in a box of its own that scrolls if it must."""
        box = {"x": LEFT, "y": TOP - 8, "width": self.width - LEFT - RIGHT + 8}
        box["height"] = self.height - self.bottom - box["y"] + 4
        seen = " ".join(map(str, box.values()))
        inside = element("svg", *marks, viewBox=seen, **box)  # cuts off what lies beyond the axes
        parts = [*self._across(slanted), *self._up(), inside]
        drawn = element(
            "svg", *parts, role="img", aria_label=title, viewBox=f"0 0 {self.width} {self.height}",
            data_x=self.x.label, data_y=self.y.label, class_="wide" if slanted else None,
            style=f"--width: {self.width}px" if slanted else None,
        )  # fmt: skip
        return element("div", drawn, class_="scroll")

    def _up(self) -> list[Markup]:
        """Grid lines, their numbers, and the label of the vertical axis."""
        made = []
        for value, said in self.y.ticks:
            left, at = self.place(self.x.low, value)
            path = f"M{left:.1f} {at:.1f}H{self.width - RIGHT}"
            made.append(element("path", d=path, class_="grid"))
            made.append(element("text", said, x=LEFT - 6, y=f"{at + 4:.1f}", class_="end"))
        middle = (self.height - self.bottom + TOP) / 2
        turn = f"rotate(-90 14 {middle:.1f})"
        return [*made, element("text", self.y.label, x=14, y=middle, transform=turn, class_="mid")]

    def _across(self, slanted: bool) -> list[Markup]:
        floor = self.height - self.bottom
        made = [element("path", d=f"M{LEFT} {floor}H{self.width - RIGHT}", class_="axis")]
        for value, said in self.x.ticks:
            at, _ = self.place(value, self.y.low)
            if slanted:
                turn = f"rotate(-50 {at:.1f} {floor + 12})"
                look = {"x": f"{at:.1f}", "y": floor + 12, "transform": turn, "class_": "end"}
            else:
                look = {"x": f"{at:.1f}", "y": floor + 18, "class_": "mid"}
            made.append(element("text", said, **look))
        middle = (LEFT + self.width - RIGHT) / 2
        return [*made, element("text", self.x.label, x=middle, y=self.height - 8, class_="mid")]

    def line(self, line: Line) -> Markup:
        """A polyline whose values the page's script shows beside the pointer."""
        kept = thinned(line.points)
        at = " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in kept)
        drawn = element(
            "polyline", element("title", line.name), points=at, class_=f"line {look(line.look)}",
            data_x=" ".join(f"{x:g}" for x, _ in kept),
            data_y=" ".join(f"{y:.5g}" for _, y in kept),
        )  # fmt: skip
        dots = [self.dot(point, line.look) for point in kept] if line.dots else []
        return element("g", drawn, dots)

    def dot(self, point: tuple[float, float], number: int, title: str | None = None) -> Markup:
        """A filled circle; with a title it says so when it is pointed at."""
        x, y = self.place(*point)
        inside = element("title", title) if title else None
        return element("circle", inside, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=look(number))

    def cross(self, point: tuple[float, float], number: int, title: str) -> Markup:
        """A cross: a run that diverged."""
        x, y = self.place(*point)
        path = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return element("path", element("title", title), d=path, class_=f"cross {look(number)}")

    def bar(self, x: float, low: float, high: float, kind: str) -> Markup:
        """A vertical bar from one value to another."""
        (across, bottom), (_, top) = self.place(x, low), self.place(x, high)
        return element("path", d=f"M{across:.1f} {bottom:.1f}V{top:.1f}", class_=kind)

    def level(self, value: float, said: str) -> Markup:
        """A dashed horizontal line at a value, named at its right end."""
        left, at = self.place(self.x.low, value)
        path = f"M{left:.1f} {at:.1f}H{self.width - RIGHT}"
        name = element("text", said, x=LEFT + 4, y=f"{at - 4:.1f}", class_="edge")
        return element("g", element("path", d=path, class_="edge"), name)


def look(number: int) -> str:
    """The classes of the `number`-th colour and dash."""
    return f"c{number % LOOKS}" + (f" d{number // LOOKS % 3}" if number >= LOOKS else "")


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about `POINTS` of them, the last among them."""
    step = -(-len(points) // POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def legend(entries: Sequence[tuple[int, str]]) -> Markup:
    """Names of colours, each under a swatch of its line."""
    made = []
    for number, name in entries:
        swatch = element("path", d="M0 5H22", class_=f"line {look(number)}")
        drawn = element("svg", swatch, viewBox="0 0 22 10", class_="swatch", aria_hidden="true")
        made.append(element("li", drawn, name))
    return element("ul", made, class_="legend")


def figure(caption: str, names: Markup, *charts: Markup) -> Markup:
    """Charts under one caption and one legend, side by side where there is room."""
    shown = element("div", *charts, class_="charts")
    return element("figure", element("figcaption", caption), names, shown)
