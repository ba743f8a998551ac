"""Bits per byte: one table for a text that models read with several tokenizers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from normlab.results.record import OK, Record, latest
from normlab.results.table import SUBJECT, Cell, Table, head, row_settings, subject

OF_TOKENS = ("tokenizer", "tokenizer_hash", "windows", "tokens_scored")
"""Of a table's head what says how the text was cut into tokens."""
TOLD = ("data.tokenizer", "data.vocab_size")
"""Settings that a tokenizer's name says."""
BITS, TOKENS = "bits_per_byte", "tokens"


def bit_tables(records: Iterable[Record], precisions: Iterable[str] | None = None) -> list[Table]:
    """A table of bits per byte for each text that was read with several tokenizers.

    Perplexities of tokens don't compare there. None of a text of which only the first windows were
    read: with another tokenizer those are another part of it.

    Args:
        records: any.
        precisions: the columns and their order; None takes all that there are.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in latest(records):
        common = {k: v for k, v in head(record).items() if k not in OF_TOKENS}
        if record.text.max_windows is None and record.result.bits_per_byte is not None:
            groups.setdefault(tuple(common.values()), []).append(record)
    several = [g for g in groups.values() if len({r.text.tokenizer_hash for r in g}) > 1]
    return [_table(group, precisions) for group in several]


def _table(group: Sequence[Record], precisions: Iterable[str] | None) -> Table:
    asked = tuple(dict.fromkeys(precisions or (r.precision for r in group)))
    settings = tuple(k for k in row_settings(group) if k not in TOLD)
    exact = {_model(r): r for r in group if r.precision == "fp32" and r.model.transform == "none"}
    rows: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for r in group:
        row = (*subject(r, ()), r.text.tokenizer, *subject(r, settings)[len(SUBJECT) :])
        rows.setdefault(row, {})[r.precision] = _cell(r, exact)
    names = ", ".join(dict.fromkeys(str(r.text.tokenizer) for r in group))
    common = head(group[0]) | dict.fromkeys(OF_TOKENS) | {"tokenizer": names}
    notes = {r.model.name: r.model.note for r in group if r.model.note}
    return Table(common, BITS, asked, rows, (TOKENS, *settings), notes)


def _model(record: Record) -> tuple[str, str | None]:
    """What a record and that of its model in fp32 before any transform have in common."""
    plain = record.model.name.removesuffix(f" ({record.model.transform})")
    return plain, record.text.tokenizer_hash


def _cell(record: Record, exact: Mapping[tuple[str, str | None], Record]) -> Cell:
    """What stands in a perplexity's cell, in bits per byte."""
    cell, reference = Cell.of(record), exact.get(_model(record))
    delta = stderr = None
    if cell.delta is not None and reference is not None and record.status == OK:
        delta, stderr = bit_difference(record, reference)
    return replace(cell, value=record.result.bits_per_byte, delta=delta, stderr=stderr)


def bit_difference(record: Record, reference: Record) -> tuple[float, float]:
    """Bits per byte less those of a reference on the same windows, with its standard error.

    With dᵢ the difference of NLL in window i of nᵢ tokens, D and N their sums over K windows and B
    the bytes, the difference is D/(B ln 2), and by the delta method for the ratio D/N

        SE = √(K/(K−1) · Σ (dᵢ − nᵢ D/N)²) / (B ln 2).
    """
    unit = (record.text.bytes or 0) * math.log(2)
    counts = np.array(record.result.window_tokens, np.float64)
    nll, exact = (np.array(r.result.window_nll) for r in (record, reference))
    with np.errstate(invalid="ignore"):
        moved = nll - exact
        total, windows = moved.sum(), len(moved)
        squares = np.square(moved - counts * total / counts.sum()).sum()
    stderr = math.nan if windows < 2 else math.sqrt(windows / (windows - 1) * squares)
    return float(total) / unit, stderr / unit
