"""What a probe found, and how much of it was tested."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from normlab.numerics import Datapath
from normlab.numerics.eps import EpsForm
from normlab.probe.explain import Arithmetic, Rows
from normlab.probe.kernel import Seen
from normlab.probe.observe import Observed, same
from normlab.probe.shrink import shrunk

if TYPE_CHECKING:
    from normlab.probe.search import Search

ROWS = 192


@dataclass(frozen=True)
class Share:
    """Rows that a datapath predicts bit for bit, of those tried."""

    exact: int
    rows: int

    def __str__(self) -> str:
        """As a report says it."""
        return f"{self.exact} of {self.rows}"


@dataclass(frozen=True)
class Finding:
    """The arithmetics that no row told apart.

    Args:
        kernel, d, dtype: what was probed.
        observed: what was seen directly.
        left: the arithmetics, the plainest first; each predicts as many rows as the others.
        random, adversarial: rows that they predict.
        rows: what the kernel was asked for in all.
        differs: the smallest row that the first of them predicts wrongly; None: there was none.
        predicted: what it predicts of that row.
    """

    kernel: str
    d: int
    dtype: str
    observed: Observed
    left: tuple[Arithmetic, ...]
    random: Share
    adversarial: Share
    rows: int
    differs: Seen | None
    predicted: np.ndarray | None

    @property
    def exact(self) -> bool:
        """Whether every row that was tried is predicted bit for bit."""
        return all(share.exact == share.rows for share in (self.random, self.adversarial))

    @property
    def share(self) -> float:
        """Of all rows that were tried."""
        shares = self.random, self.adversarial
        return sum(share.exact for share in shares) / sum(share.rows for share in shares)

    @property
    def candidates(self) -> list[tuple[Datapath, EpsForm]]:
        """Each as a datapath and the place of ε, where a datapath says the whole of it."""
        return [(a.path, a.front.form) for a in self.left if a.has_words]


def finding(search: "Search", left: list[Arithmetic]) -> Finding:
    """Try what is left on rows of another draw."""
    random, adversarial = tests(search)
    left = predicted_best(search.observed, left, [random, adversarial])
    left = [a._replace(tail=tail) for a in left for tail in search.like(a.tail)]
    left = sorted(left, key=plainness)
    goods = [exact(search.observed, left[0], seen) for seen in (random, adversarial)]
    shares = [Share(int(good.sum()), len(good)) for good in goods]
    differs = shrunk(search, left[0], Seen.joined([random, adversarial]))
    kernel = search.kernel
    return Finding(
        kernel.name,
        kernel.d,
        kernel.dtype,
        search.observed,
        tuple(left),
        shares[0],
        shares[1],
        kernel.rows,
        differs,
        None if differs is None else Rows(search.observed, differs).predicted(left[0]),
    )


def tests(search: "Search") -> tuple[Seen, Seen]:
    """Random rows, and rows made to be hard."""
    d, design = search.kernel.d, search.design
    low = -3 if search.kernel.dtype == "fp16" else -12
    random = search.given(design.dense(ROWS, low, 3), (1e-5, 1e-6))
    edges = design.edges(search.kernel.dtype)
    rest = ROWS - len(edges)
    hard = [design.swamped(rest // 3, -3, 3), design.half(rest // 3, -3, 3)]
    hard.append(design.spikes(rest - 2 * (rest // 3), -8, 9))
    adversarial = search.given(np.concatenate([edges, *hard]).reshape(-1, d), (1e-5,))
    return search.asked(random), search.asked(adversarial)


def exact(observed: Observed, a: Arithmetic, seen: Seen) -> np.ndarray:
    """Rows that it predicts bit for bit."""
    return np.asarray(same(Rows(observed, seen).predicted(a), seen.y).all(-1))


def predicted_best(
    observed: Observed, left: list[Arithmetic], parts: list[Seen]
) -> list[Arithmetic]:
    """Those that predict most of the rows."""
    counts = np.zeros(len(left), int)
    for seen in parts:
        rows = Rows(observed, seen)
        counts += [int(same(rows.predicted(a), seen.y).all(-1).sum()) for a in left]
    return [a for a, count in zip(left, counts, strict=True) if count == counts.max()]


def plainness(a: Arithmetic) -> tuple:
    """What sorts the plainest first: few named stages, a simple root and order."""
    path = replace(a.path, source="")
    kinds = ("sqrt", "rsqrt", "divide", "table", "magic")
    return (
        a.front.form != EpsForm.UNDER,
        len(path.stages),
        kinds.index(path.root.kind),
        path.root.newton,
        path.root.entries,
        len(path.sum),
        str(path),
    )
