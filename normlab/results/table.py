"""Tables: models down, precisions across, one table for each text and way of reading it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from normlab.results.fields import ModelInfo
from normlab.results.record import OK, Record, latest
from normlab.results.settings import decides, differing, of_run, shown
from normlab.results.stream import Inputs, stream_note

SUBJECT = ("model", "norm", "placement")
ADDED = ("norm_embed", "norm_qk", "norm_qk_full", "norm_qk_rotated", "norm_v")
"""Sites that a placement may have besides its own: the column `placement` names them."""
HEAD = (
    "dataset_title", "text_sha256", "split", "protocol", "protocol_version", "window",
    "max_windows", "tokenizer", "tokenizer_hash", "windows", "tokens_scored", "default_order",
)  # fmt: skip
KINDS = {
    "perplexity": "Token perplexity",
    "word_perplexity": "Word perplexity",
    "bits_per_byte": "Bits per byte",
}
"""By what is reported how a table's title begins."""
LEGEND = (
    "A column is the precision of norms' sums, with all else in float32, or the name of a "
    "datapath, which rounds every stage of a norm as it says. +RULE: norms' inputs are divided by "
    "static scales first (slanc: the paper's; random_tokens: the rule to use). @fp16: weights, "
    "and all that a half-precision runtime stores, are rounded to fp16 as well. Δ is the "
    "difference to the model in fp32 before any transform, ± its paired standard error over "
    "windows. overflow: rows (one token at one norm) whose sum left the format's range and became "
    "infinite; zero: rows whose sum vanished; n/a: the norm sums nothing, or the transform, the "
    "rule or the datapath doesn't apply to this model."
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
    inputs: Inputs | None = None  # of its norms

    @classmethod
    def of(cls, r: Record) -> "Cell":
        """What the record's protocol reports."""
        value, *moved = reported(r)
        exact = r.precision == "fp32" and r.model.transform == "none"
        delta, stderr = (None, None) if exact else moved
        lost = r.ranges.overflowed_rows or 0, r.ranges.zero_rows or 0
        inputs = Inputs.of(r.ranges, r.row_format, r.model.transform) if r.ranges.sites else None
        return cls(value, delta, stderr, *lost, r.status, r.key, inputs)

    @property
    def exact(self) -> float:
        """What its Δ refers to, of a cell in fp32; NaN where nothing was measured."""
        value = math.nan if self.value is None else self.value
        return value if self.delta is None else value - self.delta

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


def reported(r: Record) -> tuple[float | None, float | None, float | None]:
    """The perplexity that its protocol reports, its difference to fp32 and the error of that."""
    result, other = r.result, r.comparison
    if r.text.reported == "word_perplexity":
        return result.word_perplexity, other.word_delta, other.word_delta_stderr
    return result.perplexity, other.delta, other.delta_stderr


def number(value: float) -> str:
    """A perplexity in three decimals, or four digits where it is huge; inf and nan as such."""
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.4g}"


def difference(delta: float, stderr: float | None) -> str:
    """A difference with as many decimals as its error has meaningful ones."""
    if stderr is None or math.isnan(stderr):  # one window has none
        return f"{delta:+.3g}"
    if not math.isfinite(stderr) or stderr <= 0:
        return f"{delta:+.3g} ± {stderr:.2g}"
    return with_error(delta, stderr, "+")


def with_error(value: float, error: float, sign: str = "") -> str:
    """Both to the error's second digit, but no further than to whole numbers; error > 0.

    Args:
        value: any.
        error: what stands after ±.
        sign: "+", where a positive value has one too.
    """
    if max(abs(value), error) >= 1e9:  # which nobody reads digit by digit
        return f"{value:{sign}.4g} ± {error:.2g}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 12)
    return f"{value:{sign}.{decimals}f} ± {error:.{decimals}f}"


@dataclass(frozen=True)
class Table:
    """One text read in one way: perplexities of models (rows) in precisions (columns).

    Or, of models with several tokenizers, their bits per byte (`normlab.results.bits`).

    Args:
        head: what all of it has in common, the fields `HEAD`.
        reported: which perplexity.
        precisions: the columns.
        rows: by subject (model, norm, placement, then a value for each of `settings`) its cells.
        settings: fields of training configs in which the rows differ.
        notes: by model what must be said beside its name.
    """

    head: dict[str, object]
    reported: str
    precisions: tuple[str, ...]
    rows: dict[tuple[Any, ...], dict[str, Cell]]
    settings: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def subject(self) -> tuple[str, ...]:
        """What the columns before the numbers are called: a key of `rows` holds their values."""
        return (*SUBJECT, *self.settings)

    @property
    def title(self) -> str:
        """What the numbers are, in two sentences, and what must be known of a model."""
        said = [
            f"{model}: {note}."
            for model, note in self.notes.items()
            if model == (plain := model.partition(" (")[0]) or plain not in self.notes
        ]
        return " ".join([self._text, *said])

    @property
    def _text(self) -> str:
        h = self.head
        if h["dataset_title"] is None:
            return "Not evaluated."
        kind = KINDS[self.reported]
        cut = f"first {h['max_windows']} windows" if h["max_windows"] else "all"
        if self.reported == "bits_per_byte":
            scored = f"tokenizers {h['tokenizer']}, whose perplexities don't compare"
        else:
            tokens = "none" if h["tokens_scored"] is None else f"{h['tokens_scored']:,}"
            scored = f"{tokens} tokens scored, tokenizer {h['tokenizer']}"
        return (
            f"{kind} on {h['dataset_title']}, {h['split']} split ({cut}). Protocol {h['protocol']} "
            f"v{h['protocol_version']}, windows of {h['window']} tokens, {scored}; "
            f"sums are {h['default_order']} where a column names no order."
        )

    @property
    def stream(self) -> str:
        """One line on the rows whose stream a column can't hold, "" without any."""
        rows = {
            str(s[0]): [c.inputs for c in cells.values() if c.inputs]
            for s, cells in self.rows.items()
        }
        return stream_note(rows)

    @property
    def columns(self) -> list[str]:
        """The header of the text formats."""
        return [*self.subject, *(p if p == "fp32" else f"{p} (Δ)" for p in self.precisions)]

    def lines(self) -> list[list[str]]:
        """The rows of the text formats, under `columns`; empty where there is no record."""
        return [
            [*map(str, subject), *(str(c or "") for c in self.shown(cells))]
            for subject, cells in self.rows.items()
        ]

    def shown(self, cells: dict[str, Cell]) -> list[Cell | None]:
        """A row's cells; what is said of the whole model, with its reason, is said once."""
        found = [cells.get(p) for p in self.precisions]
        once = len({c.status if c else OK for c in found}) == 1 and ": " in str(found[0])
        return [c if i == 0 or not once else None for i, c in enumerate(found)]


def tables(records: Iterable[Record], precisions: Iterable[str] | None = None) -> list[Table]:
    """One table for each text and way of reading it, rows and columns as they come.

    Numbers that don't compare (another protocol, window, tokenizer, number of tokens) never share
    a table. Of two records for one cell the later one counts; a row is one model with the same
    weights in all its cells (`latest`).

    Args:
        records: any.
        precisions: the columns and their order; None takes all that there are.
    """
    made = []
    for group in by_text(latest(records)):
        asked = tuple(dict.fromkeys(precisions or (r.precision for r in group)))
        settings = row_settings(group)
        rows: dict[tuple[Any, ...], dict[str, Cell]] = {}
        for r in group:
            rows.setdefault(subject(r, settings), {})[r.precision] = Cell.of(r)
        notes = {r.model.name: r.model.note for r in group if r.model.note}
        kind = group[0].text.reported
        made.append(Table(head(group[0]), kind, asked, rows, settings, notes))
    return made


def by_text(records: Iterable[Record]) -> list[list[Record]]:
    """The records in groups whose numbers compare: of one text that was read in one way."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(head(record).values()), []).append(record)
    return list(groups.values())


def head(record: Record) -> dict[str, Any]:
    """What all records of one table have in common, the fields `HEAD`."""
    values = record.flat()
    return {name: values[name] for name in HEAD}


def subject(record: Record, settings: Iterable[str]) -> tuple[Any, ...]:
    """What a row says of its model: `SUBJECT`, then a value for each of `settings`."""
    config, model = of_run(record), record.model
    told = [shown(config[key]) if key in config else "" for key in settings]
    return (model.name, model.norm or "", _placement(model), *told)


def _placement(model: ModelInfo) -> str:
    """The placement, and the sites that were added to it: "peri + norm_embed"."""
    added = [site for site in ADDED if model.placement_config.get(site)]
    return " + ".join([model.placement or "", *added])


def row_settings(records: Iterable[Record]) -> tuple[str, ...]:
    """What tells the runs of one table apart beside norm and placement, the seed last."""
    named = [f"placement.{site}" for site in ADDED]
    found = [k for k in differing(map(of_run, records)) if decides(k) and k not in named]
    return tuple(sorted(found, key=lambda key: key == "seed"))
