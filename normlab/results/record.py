"""A result and all that it depends on: one record, one line of JSON."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normlab.registry import choice
from normlab.results import renamed

OK, NOT_APPLICABLE = "ok", "n/a"
GOOD = ("finished", "stopped early")
"""States of a training run that has ended well."""


@dataclass(frozen=True)
class Record:
    """One model in one precision on one text by one protocol.

    Sums are of nats. What a model that wasn't evaluated can't have is None. Non-finite numbers are
    kept as they are; in JSON they are the strings "inf", "-inf" and "nan", which `float()` reads.
    """

    # What it is
    key: str  # hash of everything that the result depends on
    model: str
    norm: str | None
    placement: str | None
    precision: str
    status: str = OK  # or "n/a" (no statistic), or how the training run ended, if not well
    transform: str = "none"  # what was done to the model before it was read
    note: str | None = None  # what must be said beside its name: "step 0 of 200, unfinished"
    # The text, and how it was read
    protocol: str | None = None
    protocol_version: int | None = None
    reported: str = "perplexity"
    window: int | None = None
    max_windows: int | None = None
    dataset: str | None = None
    dataset_title: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    text_sha256: str | None = None
    tokenizer: str | None = None
    tokenizer_hash: str | None = None
    # What came out
    perplexity: float | None = None
    sum_nll: float | None = None
    tokens_scored: int | None = None
    words: int | None = None
    bytes: int | None = None
    word_perplexity: float | None = None
    byte_perplexity: float | None = None
    bits_per_byte: float | None = None
    windows: int | None = None
    nonfinite_windows: int | None = None
    # Against fp32, on the same windows
    delta: float | None = None
    delta_stderr: float | None = None
    word_delta: float | None = None
    word_delta_stderr: float | None = None
    # Token by token against fp32, where it was asked for; nats
    token_delta_mean: float | None = None  # mean |ΔNLL| of a scored token
    token_delta_max: float | None = None  # the largest
    token_delta_max_at: list[int] | None = None  # its window and position (of the input), from 0
    top1_agreement: float | None = None  # share of tokens with the same likeliest next token
    kl_mean: float | None = None  # KL(fp32 ‖ this) of the next token's distribution
    kl_max: float | None = None
    # What the norms saw
    rows: int | None = None
    overflowed_rows: int | None = None  # rows with a sum that is not finite
    underflowed_rows: int | None = None  # rows whose sum is below the smallest normal
    zero_rows: int | None = None  # those of them whose sum is zero
    precision_loss_rows: int | None = None  # underflow may cost more than one rounding
    underflow_error_rows: int | None = None  # of them, exact sum below the smallest normal
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    # What it depends on
    order: str | None = None  # the order of summation, the default written out
    default_order: str | None = None
    scale_rule: str | None = None
    scales_sha256: str | None = None
    calibration: dict[str, Any] | None = None
    weights_sha256: str | None = None
    parameters: int | None = None
    model_config: dict[str, Any] = field(default_factory=dict)
    norm_config: dict[str, Any] = field(default_factory=dict)
    placement_config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # what is known of where it comes from
    batch: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # code, packages, device
    window_nll: list[float] = field(default_factory=list)
    window_tokens: list[int] = field(default_factory=list)
    window_words: list[int] = field(default_factory=list)
    token_nll_file: str | None = None  # beside the records, where it was asked for

    def to_json(self) -> str:
        """One line of JSON, as the standard has it."""
        return json.dumps(_encoded(dataclasses.asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The record that `to_json` wrote.

        Raises:
            UnknownNameError: a field that records don't have.
        """
        values = renamed.record(json.loads(line))
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in values:
            choice("field of a record", name, known)
        floats = [n for n, f in known.items() if "float" in str(f.type) or n == "sites"]
        return cls(**(values | {n: _decoded(values[n]) for n in floats if n in values}))


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _encoded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(v) for v in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _decoded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    return float(value) if isinstance(value, str) else value


def latest(records: Iterable[Record]) -> list[Record]:
    """Each model as it was evaluated last; two of one name are told apart by a number.

    A run that goes on has other weights at every evaluation: what was measured of earlier ones has
    no place beside the last. Two models of one name lie in two places and have different weights.
    Records without weights, of what was not evaluated, stay as they are.
    """
    records = list(records)
    last = {_place(r): r.weights_sha256 for r in records if r.weights_sha256}
    names: dict[str, dict[str, int]] = {}
    made = []
    for r in records:
        if r.weights_sha256 is None:
            made.append(r)
        elif r.weights_sha256 == last[_place(r)]:
            seen = names.setdefault(r.model, {})
            n = seen.setdefault(r.weights_sha256, len(seen) + 1)
            made.append(r if n == 1 else dataclasses.replace(r, model=f"{r.model} ({n})"))
    return made


def _place(r: Record) -> tuple[str, Any]:
    return r.model, r.facts.get("source")


class RecordFile:
    """Records as JSON lines in a file: read what is there, add one at a time.

    A line is written and flushed to disk at once. A half line that a kill has left at the end is
    dropped when the file is read, and cut off before the next record is added.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Record]:
        """All whole records, in the order in which they were added."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [self._record(n, line) for n, line in enumerate(lines, start=1) if line]

    def _record(self, number: int, line: str) -> Record:
        try:
            return Record.from_json(line)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path}, line {number}: {error} Give another out=DIR, or delete that line"
            ) from error

    def add(self, record: Record) -> None:
        """Append one record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            self._cut_half_line(file)
            file.write(record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _cut_half_line(file: Any) -> None:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
