"""What the page opens with: the best method, its spread, whether the next one differs; a table."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from normlab.report.models import page_table, said
from normlab.report.sources import Sources
from normlab.report.table import PageTable
from normlab.results import Record, Table, tables
from normlab.results.labels import Labels
from normlab.results.record import NOT_APPLICABLE
from normlab.results.settings import RATE, of_run
from normlab.results.spread import LEGEND, Group, best_rates, groups, tests
from normlab.results.summary import summary
from normlab.results.table import HEAD, head
from normlab.results.table import LEGEND as CELLS

SIGNIFICANT = 0.05
"""A difference with a p below it is called significant."""


class Answer(NamedTuple):
    """The answer of one text: two sentences, what they were read from, how that is to be read."""

    text: str
    table: PageTable
    legend: str


class Method(NamedTuple):
    """A method at its best learning rate.

    Args:
        label: its name.
        group: its records, a seed each.
        p: of the test against the best method; "*" for that, "" where there is none.
    """

    label: str
    group: Group
    p: str

    @property
    def value(self) -> str:
        """Its perplexity, ± the spread over seeds."""
        return self.group.cell("fp32")

    @property
    def mean(self) -> float:
        """Its mean log-perplexity; infinite without a number."""
        known = [log for log in self.group.logs if not math.isnan(log)]
        return sum(known) / len(known) if known else math.inf


def answers(sources: Sources, labels: Labels) -> list[Answer]:
    """An answer for each text and way of reading it, that with the most records first.

    Of training runs, from what was evaluated or else from their validation; without runs, from the
    tables of the models that there are.
    """
    of_runs = [r for r in sources.records if of_run(r)]
    records = of_runs or [run.validated for run in sources.runs] or sources.records
    found = [(table, _of(table, records)) for table in tables(records) if table.head[HEAD[0]]]
    found.sort(key=lambda pair: -len(pair[1]))
    if sources.runs:
        return [_of_methods(table, own, labels) for table, own in found]
    return [Answer(said(table), page_table(table), CELLS) for table, _ in found]


def _of(table: Table, records: Sequence[Record]) -> list[Record]:
    """The records that a table was made of."""
    return [r for r in records if head(r) == table.head]


def _of_methods(table: Table, records: Sequence[Record], labels: Labels) -> Answer:
    found = best_rates(groups(records))
    made = zip(found, tests(found), strict=True)
    methods = [Method(labels.method(group.config), group, p) for group, p in made]
    methods.sort(key=lambda m: (not m.group.ranked, m.mean))
    title = table.title
    if table.head["protocol"] is None:  # no evaluation, but training's own
        title = f"Best perplexity in validation on {table.head['dataset_title']}; none evaluated."
    shown = _methods_table(methods, title, table.precisions)
    return Answer(" ".join(_sentences(methods, table)), shown, LEGEND)


def _sentences(methods: Sequence[Method], table: Table) -> list[str]:
    """Which method is best, and what is known of the difference to the next."""
    best, *others = methods
    kind = f"{table.head['split']} {table.reported.replace('_', ' ')}"
    if best.mean == math.inf:
        return ["No method has a run that ended well."]
    if not best.group.ranked:
        return [f"{best.label} has the lowest {kind}: {best.value}.", "No method has two seeds "
                "that ended well, so how much of a difference is chance is unknown."]  # fmt: skip
    seeds = f"mean ± standard deviation over {len(best.group.logs)} seeds"
    if not others:
        return [f"{best.label} has a {kind} of {best.value} ({seeds}).", summary(table)]
    first = f"{best.label} has the lowest {kind}: {best.value} ({seeds})."
    if not others[0].group.ranked:
        return [first, "No other method has two seeds that ended well to compare it with."]
    lower = [f"{m.label} ({m.value})" for m in others if not m.group.ranked and m.mean < best.mean]
    few = f" Lower, but with too few seeds that ended well: {', '.join(lower)}." if lower else ""
    test = _test(others[0].p, sum(m.group.ranked for m in methods))
    return [first, f"The next, {others[0].label}, has {others[0].value}; {test}.{few}"]


def _test(p: str, methods: int) -> str:
    """What a test of two out of so many methods says."""
    if math.isnan(float(p)):
        return "the difference can't be tested, as the seeds have no spread"
    verdict = "significant" if float(p) < SIGNIFICANT else "not significant"
    told = f"p = {p}" + f", not corrected for {methods} methods" * (methods > 2)
    return f"the difference is {verdict} (Welch's t test, {told})"


def _methods_table(methods: Sequence[Method], title: str, precisions: Sequence[str]) -> PageTable:
    """A row for each method; a column for each precision in which one of them has a number."""
    nothing = {"", NOT_APPLICABLE}
    deltas = [p for p in precisions if {m.group.cell(p) for m in methods} - nothing and p != "fp32"]
    head = ["method", "perplexity", "p", "seeds", "learning rate", *(f"{p} (Δ)" for p in deltas)]
    rows = [
        [m.label, m.value, m.p, len(m.group.records.get("fp32", [])), m.group.setting(RATE),
         *map(m.group.cell, deltas)]
        for m in methods
    ]  # fmt: skip
    return PageTable.of(title, head, rows)
