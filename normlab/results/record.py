"""A result and all that it depends on: one record, one line of JSON."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from normlab.config import require
from normlab.numerics import FloatFormat, Precision
from normlab.registry import choice
from normlab.results import renamed
from normlab.results.fields import (
    Comparison,
    ModelInfo,
    Provenance,
    Ranges,
    Result,
    TextInfo,
)

OK, NOT_APPLICABLE = "ok", "n/a"
GOOD = ("finished", "stopped early")
"""States of a training run that has ended well."""
SCHEMA = 2
"""Of a record's JSON; 1 had no groups and didn't say its number."""


@dataclass(frozen=True)
class Record:
    """One model in one precision on one text by one protocol.

    Non-finite numbers are kept as they are; in JSON they are the strings "inf", "-inf" and "nan",
    which `float()` reads.

    Args:
        key: hash of everything that the result depends on.
        precision: how norms accumulate, and a scale rule (`normlab.results.column.Column`).
        model: which model it is.
        status: "ok", "n/a" (no statistic), or how the training run ended, if not well.
        text: what was read, and how.
        result: what came out.
        comparison: differences to fp32.
        ranges: what the norms saw.
        provenance: what the numbers depend on beside the model and the text.
    """

    key: str
    precision: str
    model: ModelInfo
    status: str = OK
    text: TextInfo = field(default_factory=TextInfo)
    result: Result = field(default_factory=Result)
    comparison: Comparison = field(default_factory=Comparison)
    ranges: Ranges = field(default_factory=Ranges)
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def format(self) -> FloatFormat:
        """In which its norms sum; a datapath, which may be a user's, is read from what was kept."""
        path = self.provenance.datapath
        norms = re.split(r"[+@/]", self.precision)[0]
        return Precision.parse(path["sum"] if path else norms).format

    @property
    def row_format(self) -> FloatFormat:
        """What holds the norms' inputs: its activations' format, or else that of its norms."""
        if self.provenance.activations:
            return FloatFormat.parse(self.provenance.activations)
        given = (self.provenance.datapath or {}).get("input") or "fp32"
        return min(self.format, FloatFormat.parse(given), key=lambda to: to.max)

    def flat(self) -> dict[str, Any]:
        """Its single values by field, without the groups, as tables name them.

        The model's name is `model`, the text's hash `text_sha256`; lists and dictionaries are left
        out.
        """
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            values |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
        names = {"name": "model", "sha256": "text_sha256"}
        plain = {k: v for k, v in values.items() if not isinstance(v, (dict, list))}
        return {names.get(name, name): value for name, value in plain.items()}

    def to_json(self) -> str:
        """One line of JSON, as the standard has it."""
        values = {"schema": SCHEMA} | dataclasses.asdict(self)
        return json.dumps(_encoded(values), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The record that `to_json` wrote, of this version or an earlier one.

        Raises:
            UnknownNameError: a field that records don't have.
            ValueError: a later version's record.
        """
        values = renamed.record(json.loads(line))
        schema = values.pop("schema")
        require(schema == SCHEMA, f"a record of schema {schema}: expected at most {SCHEMA}")
        return _decoded_as(cls, values)


def _decoded_as(cls: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of its values in JSON."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        choice("field of a record", name, known)

    def decoded(name: str, value: Any) -> Any:
        kind: Any = known[name].type
        if dataclasses.is_dataclass(kind):
            return _decoded_as(kind, value)
        return _decoded(value) if "float" in str(kind) or name == "sites" else value

    return cls(**{name: decoded(name, value) for name, value in values.items()})


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

    A run that goes on has other weights at every evaluation, and a folder's config can be edited.
    What was measured of an earlier model has no place beside the last. Two models of one name lie
    in two places or differ. Records without weights, of what was not evaluated, stay as they are.
    """
    records = list(records)
    last = {_place(r): _identity(r) for r in records if r.model.weights_sha256}
    names: dict[str, dict[str, int]] = {}
    made = []
    for r in records:
        if r.model.weights_sha256 is None:
            made.append(r)
        elif (found := _identity(r)) == last[_place(r)]:
            seen = names.setdefault(r.model.name, {})
            n = seen.setdefault(found, len(seen) + 1)
            made.append(r if n == 1 else _named(r, f"{r.model.name} ({n})"))
    return made


def _place(r: Record) -> tuple[str, Any]:
    return r.model.name, r.model.facts.get("source")


def _identity(r: Record) -> str:
    """Which model a record is of: its weights, and all that is done with them."""
    m = r.model
    told = m.weights_sha256, r.text.tokenizer_hash, m.config, m.norm_config, m.placement_config
    return json.dumps(told, sort_keys=True, default=str)


def _named(r: Record, name: str) -> Record:
    return dataclasses.replace(r, model=dataclasses.replace(r.model, name=name))
