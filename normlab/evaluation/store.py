"""The records of one evaluation's `out`: looked up by key, appended, completed by earlier ones."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from normlab.evaluation.config import REFERENCE, EvaluateConfig
from normlab.evaluation.perplexity import Scores
from normlab.evaluation.protocols import Windows
from normlab.results import Record, RecordFile
from normlab.results.record import OK

WHERE_ASKED = (
    "token_delta_mean", "token_delta_max", "token_delta_max_at", "top1_agreement", "kl_mean",
    "kl_max", "token_nll_file", "seconds", "tokens_per_second",
)  # fmt: skip
"""Fields of a record that some calls fill and others leave."""


class RecordStore:
    """What is known already, and what is added to it.

    Args:
        config: where it lies, and what a record must have to be complete.
    """

    def __init__(self, config: EvaluateConfig):
        self._config, self._out = config, Path(config.out)
        self._file = RecordFile(self._out / "records.jsonl")
        self._by_key = {record.key: record for record in self._file.read()}

    def find(self, key: str) -> Record | None:
        """The record of that key, where it has all that was asked for."""
        record = self._by_key.get(key)
        if record is None or record.status != OK:
            return record
        compares = self._config.compare and record.precision != REFERENCE
        if compares and record.kl_mean is None:
            return None
        name = record.token_nll_file
        kept = name is not None and (self._out / name).exists()
        return record if kept or not self._config.per_token else None

    def add(self, record: Record) -> Record:
        """Append a record, with what an earlier call kept of the same and this one didn't ask."""
        earlier = self._by_key.get(record.key)
        missing = [name for name in WHERE_ASKED if getattr(record, name) is None]
        kept: dict[str, Any] = {name: getattr(earlier, name, None) for name in missing}
        record = dataclasses.replace(record, **kept)
        self._file.add(record)
        self._by_key[record.key] = record
        return record

    def keep_tokens(self, key: str, scores: Scores, windows: Windows) -> str | None:
        """Scored tokens and their NLL, in the order of the text, in a file beside the records."""
        if not self._config.per_token:
            return None
        name, scored = f"tokens/{key}.npz", windows.scored
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, nll=scores.token_nll[scored], tokens=windows.targets[scored])
        return name
