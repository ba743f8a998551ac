"""The smallest row that a datapath predicts wrongly: elements are taken away while it does."""

from typing import TYPE_CHECKING

import numpy as np

from normlab.probe.explain import Arithmetic, Rows
from normlab.probe.kernel import Seen
from normlab.probe.observe import same

if TYPE_CHECKING:
    from normlab.probe.search import Search

AT_ONCE, CALLS = 16, 64


def shrunk(search: "Search", a: Arithmetic, seen: Seen) -> Seen | None:
    """One of the rows, with as many zeros as it can have and still differ; None: none does."""

    def wrong(x: np.ndarray, row: Seen) -> tuple[Seen, np.ndarray]:
        """Which of some rows differ, that have this row's γ and ε; always as many at a time."""
        full = np.concatenate([x, np.zeros((AT_ONCE - len(x), x.shape[-1]), np.float32)])
        weight, eps = (np.repeat(part, AT_ONCE, 0) for part in (row.weight, row.eps))
        found = search.asked(Seen(full, weight, eps, full))
        good = np.asarray(same(Rows(search.observed, found).predicted(a), found.y).all(-1))
        return found, ~good[: len(x)]

    good = same(Rows(search.observed, seen).predicted(a), seen.y).all(-1)
    if good.all():
        return None
    counts = np.where(good, seen.x.shape[-1] + 1, (seen.x != 0).sum(-1))
    row = seen[[int(np.argmin(counts))]]
    size, calls = max(1, int((row.x != 0).sum()) // 2), 0
    while size and calls < CALLS:
        places = np.flatnonzero(row.x[0])
        starts = range(0, len(places), size)
        pieces = [places[start : start + size] for start in starts]
        hit = False
        for first in range(0, len(pieces), AT_ONCE):
            x = np.repeat(row.x, len(pieces[first : first + AT_ONCE]), 0)
            for i, piece in enumerate(pieces[first : first + AT_ONCE]):
                x[i, piece] = 0
            found, bad = wrong(x, row)
            calls += 1
            if bad.any():
                row, hit = found[[int(np.argmax(bad))]], True
                break
        size = size if hit and size < len(places) else size // 2
    return row
