"""Tables: models down, precisions across, one table for each text and way of reading it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from normlab.results.record import OK, Record

SUBJECT = ("model", "norm", "placement")
HEAD = (
    "dataset_title", "text_sha256", "split", "protocol", "protocol_version", "window",
    "max_windows", "tokenizer", "tokenizer_hash", "windows", "tokens_scored", "default_order",
)  # fmt: skip
LEGEND = (
    "Δ is the difference to fp32, ± its paired standard error over windows. overflow: rows whose "
    "sum left the format's range and became infinite; zero: rows whose sum vanished; n/a: the norm "
    "accumulates nothing, or the transform can't rewrite this model."
)


@dataclass(frozen=True)
class Cell:
    """One model in one precision."""

    value: float | None
    delta: float | None
    stderr: float | None
    overflowed: int
    zero: int
    status: str
    key: str = ""  # its record's

    @classmethod
    def of(cls, r: Record) -> "Cell":
        """What the record's protocol reports."""
        value, delta, stderr = r.perplexity, r.delta, r.delta_stderr
        if r.reported == "word_perplexity":
            value, delta, stderr = r.word_perplexity, r.word_delta, r.word_delta_stderr
        if r.precision == "fp32":
            delta, stderr = None, None
        lost = r.overflowed_rows or 0, r.zero_rows or 0
        return cls(value, delta, stderr, *lost, r.status, r.key)

    @property
    def parts(self) -> list[str]:
        """The value, then what must be said of it: "19.105", "+13.99 ± 0.41", "overflow 1,234"."""
        if self.status != OK or self.value is None:
            return [self.status]
        parts = [number(self.value)]
        if self.delta is not None and math.isfinite(self.delta):
            parts.append(difference(self.delta, self.stderr))
        parts += [f"overflow {self.overflowed:,}"] * bool(self.overflowed)
        return parts + [f"zero {self.zero:,}"] * bool(self.zero)

    def __str__(self) -> str:
        """Such as "19.105 (+13.99 ± 0.41; overflow 1,234)"."""
        value, *rest = self.parts
        return f"{value} ({'; '.join(rest)})" if rest else value


def number(value: float) -> str:
    """A perplexity in three decimals, or four digits where it is huge; inf and nan as such."""
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.4g}"


def difference(delta: float, stderr: float | None) -> str:
    """A difference with as many decimals as its error has meaningful ones."""
    if stderr is None or not math.isfinite(stderr) or stderr <= 0:
        return f"{delta:+.3g}" + ("" if stderr is None else f" ± {stderr:.2g}")
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 12)
    return f"{delta:+.{decimals}f} ± {stderr:.{decimals}f}"


@dataclass(frozen=True)
class Table:
    """One text read in one way: perplexities of models (rows) in precisions (columns)."""

    head: dict[str, object]
    reported: str
    precisions: tuple[str, ...]
    rows: dict[tuple[str, str, str], dict[str, Cell]]

    @property
    def title(self) -> str:
        """What the numbers are, in two sentences."""
        h = self.head
        if h["dataset_title"] is None:
            return "Not evaluated."
        kind = "Word perplexity" if self.reported == "word_perplexity" else "Token perplexity"
        cut = f"first {h['max_windows']} windows" if h["max_windows"] else "all"
        scored = "none" if h["tokens_scored"] is None else f"{h['tokens_scored']:,}"
        return (
            f"{kind} on {h['dataset_title']}, {h['split']} split ({cut}). Protocol {h['protocol']} "
            f"v{h['protocol_version']}, windows of {h['window']} tokens, {scored} tokens scored, "
            f"tokenizer {h['tokenizer']}; sums are {h['default_order']} where a column names no "
            "order."
        )

    @property
    def columns(self) -> list[str]:
        """The header of the text formats."""
        return [*SUBJECT, *(p if p == "fp32" else f"{p} (Δ)" for p in self.precisions)]

    def lines(self) -> list[list[str]]:
        """The rows of the text formats, under `columns`; empty where there is no record."""
        return [
            [*subject, *(str(cells.get(p, "")) for p in self.precisions)]
            for subject, cells in self.rows.items()
        ]


def tables(records: Iterable[Record], precisions: Iterable[str] | None = None) -> list[Table]:
    """One table for each text and way of reading it, rows and columns as they come.

    Numbers that don't compare (another protocol, window, tokenizer, number of tokens) never share
    a table. Of two records for one cell the later one counts.

    Args:
        records: any.
        precisions: the columns and their order; None takes all that there are.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(getattr(record, name) for name in HEAD), []).append(record)
    made = []
    for head, group in groups.items():
        asked = tuple(dict.fromkeys(precisions or (r.precision for r in group)))
        rows: dict[tuple[str, str, str], dict[str, Cell]] = {}
        for r in group:
            subject = (r.model, r.norm or "", r.placement or "")
            rows.setdefault(subject, {})[r.precision] = Cell.of(r)
        made.append(Table(dict(zip(HEAD, head, strict=True)), group[0].reported, asked, rows))
    return made
