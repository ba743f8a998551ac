"""Methods of a sweep in a table for a paper: one line each, mean ± spread, against a baseline."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.results.formats import escaped, grid
from normlab.results.labels import Labels
from normlab.results.record import OK, Record, latest
from normlab.results.settings import RATE
from normlab.results.spread import Group, best_rates, groups
from normlab.results.table import by_text, tables, with_error
from normlab.results.versus import FEW, Versus, baselines, compared

LEGEND = (
    "Mean ± standard deviation over seeds of perplexity in fp32, each method at the learning rate "
    "with the lowest validation loss. Difference: of geometric means, as a share of the "
    "baseline's, with its 95 % interval; a t test, paired by seed where two seeds or more match, "
    "else Welch's. p is corrected by Holm for all methods of the table. Visible: the smallest "
    "difference that so many seeds, spread like these, would show in four of five repetitions."
)
COLUMNS = ("method", "learning rate", "seeds", "perplexity", "difference", "p (Holm)", "visible")


@dataclass(frozen=True)
class Methods:
    """All methods of one text.

    Args:
        text: what was read, and how.
        split: of it.
        names: of the methods.
        groups: their runs, each at its best rate.
        bases: by method which of them is its baseline, itself of one; empty without one.
        versus: by method its difference to that.
    """

    text: str
    split: str
    names: list[str]
    groups: list[Group]
    bases: list[int]
    versus: list[Versus | None]

    @property
    def best(self) -> int | None:
        """The one with the lowest mean, of those all of whose seeds ended well."""
        ranked = [i for i, group in enumerate(self.groups) if group.ranked]
        return min(ranked, key=lambda i: self.mean(i), default=None)

    def mean(self, i: int) -> float:
        """Mean perplexity over seeds."""
        return float(np.exp(self.groups[i].logs).mean()) if self.groups[i].logs else math.nan

    def deviation(self, i: int) -> float:
        """Its sample deviation; NaN of a single seed."""
        found = np.exp(self.groups[i].logs)
        return float(found.std(ddof=1)) if len(found) > 1 else math.nan

    def shown(self, i: int) -> str:
        """Mean ± deviation, or how a seed ended that did not end well."""
        group = self.groups[i]
        if not group.sound or not group.logs:
            return group.cell("fp32")
        spread = self.deviation(i)
        return with_error(self.mean(i), spread) if spread > 0 else group.cell("fp32")


def methods(records: Iterable[Record], compare_to: str | None = None) -> list[Methods]:
    """The methods of each text where one has several seeds.

    Raises:
        ValueError: no method is called `compare_to`, or it has not two seeds that ended well.
    """
    made = []
    for rows in by_text(latest(records)):
        found = groups(rows)
        if any(r.status == OK for r in rows) and any(len(g.logs) > 1 for g in found):
            made.append(_methods(rows, best_rates(found), compare_to))
    return made


def _methods(rows: Sequence[Record], found: list[Group], compare_to: str | None) -> Methods:
    labels = Labels.of_records(rows)
    bases = [] if compare_to is None else baselines(found, compare_to)
    return Methods(
        tables(rows)[0].title,
        rows[0].text.split or "",
        [labels.method(group.config) for group in found],
        found,
        [found.index(base) for base in bases],
        compared(found, bases) if bases else [None] * len(found),
    )


def page(found: Sequence[Methods]) -> str:
    """The sentences for a paper, the table, what its columns say."""
    parts = [part for m in found for part in (m.text, sentences(m), grid(lines(m)))]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def lines(m: Methods) -> list[list[str]]:
    """A head, and a line for each method."""
    return [list(COLUMNS), *(_line(m, i) for i in range(len(m.names)))]


def _line(m: Methods, i: int) -> list[str]:
    group, versus = m.groups[i], m.versus[i]
    cells = ["baseline" if i in m.bases else "", "", ""]
    if versus is not None:
        cells = [_difference(versus), f"{versus.corrected:.2g}", f"{_percent(versus.visible)} %"]
    return [m.names[i], group.setting(RATE), str(len(group.logs)), m.shown(i), *cells]


def _difference(v: Versus) -> str:
    share, low, high = (_percent(x, "+") for x in (v.share, v.low, v.high))
    return f"{share} % ({low} to {high})"


def _percent(share: float, sign: str = "") -> str:
    """With two digits, or as a whole number."""
    value = 100 * share
    return f"{value:{sign}.2g}" if abs(value) < 99.5 else f"{value:{sign}.0f}"


def sentences(m: Methods) -> str:
    """For a paper: each method beside the baseline, or else which one is best."""
    if m.best is None:
        return "No method has two seeds that ended well: nothing is compared."
    if not m.bases:
        best = f"{m.names[m.best]} has the lowest perplexity, {m.shown(m.best)}"
        seeds = len(m.groups[m.best].logs)
        return f"{best} ({seeds} seeds, {m.split} split). compare_to=NAME tests the others."
    said = [_said(m, i, v) for i, v in enumerate(m.versus) if v is not None]
    fewest = min((len(g.logs) for g in m.groups if g.ranked), default=0)
    if fewest < FEW:
        said.append(f"{fewest} seeds decide little: take the last column as the limit of sight.")
    return " ".join(said)


def _said(m: Methods, i: int, v: Versus) -> str:
    base = f"{m.names[m.bases[i]]}'s {m.shown(m.bases[i])}"
    way = "above" if v.share > 0 else "below"
    test = f"paired over {v.seeds} seeds" if v.seeds else "Welch's test"
    clear = v.corrected < 0.05
    found = f"{_percent(abs(v.share))} % {way} {base}" if clear else f"not told apart from {base}"
    return (
        f"{m.names[i]} reaches {m.shown(i)} on the {m.split} split, {found} (difference "
        f"{_difference(v)}, {test}, Holm-corrected p = {v.corrected:.2g})."
    )


def booktabs(found: Sequence[Methods]) -> str:
    r"""A LaTeX `table` for each text, best in bold; it needs \usepackage{booktabs}."""
    return "\n".join(map(_booktabs, found))


def _booktabs(m: Methods) -> str:
    head = COLUMNS if m.bases else COLUMNS[:4]
    rows = []
    for i in range(len(m.names)):
        cells = [escaped(cell) for cell in _line(m, i)[: len(head)]]
        if i == m.best:
            cells[3] = rf"\textbf{{{cells[3]}}}"
        rows.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{escaped(f'{m.text} {sentences(m)}')}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, head)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


NUMBERS = ("share", "low", "high", "p", "corrected", "visible")


def as_csv(found: Sequence[Methods]) -> str:
    """One line a method, every number by itself; shares of the baseline's perplexity."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["method", "norm", "placement", RATE, "seeds", "mean", "sd", "best", "baseline"]
    writer.writerow([*head, *NUMBERS, "paired_seeds", "split", "text"])
    for m in found:
        for i, group in enumerate(m.groups):
            v, model = m.versus[i], group.model
            own = [m.names[i], model.norm, model.placement, group.config.get(RATE)]
            numbers: list[Any] = [None] * (len(NUMBERS) + 1)
            if v is not None:
                numbers = [*(getattr(v, name) for name in NUMBERS), v.seeds]
            told = [len(group.logs), m.mean(i), m.deviation(i), i == m.best, i in m.bases]
            writer.writerow([*own, *told, *numbers, m.split, m.text])
    return out.getvalue()
