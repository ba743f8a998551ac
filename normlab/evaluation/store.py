"""The records of one evaluation's `out`: looked up by key, appended, completed by earlier ones."""

import dataclasses
from pathlib import Path
from typing import TypeVar

import numpy as np

from normlab.evaluation.config import REFERENCE, EvaluateConfig
from normlab.evaluation.perplexity import Scores
from normlab.evaluation.protocols import Windows
from normlab.results import Record, RecordFile
from normlab.results.fields import Comparison, Result
from normlab.results.record import OK
from normlab.runs.run import make_directory
from normlab.transforms import NOTHING

T = TypeVar("T", Result, Comparison)


class RecordStore:
    """What is known already, and what is added to it.

    Args:
        config: where it lies, and what a record must have to be complete.
    """

    def __init__(self, config: EvaluateConfig):
        self._config, self._out = config, Path(config.out)
        make_directory("out", self._out)
        self._file = RecordFile(self._out / "records.jsonl")
        self._file.mend()
        self._by_key = {record.key: record for record in self._file.read()}

    def find(self, key: str) -> Record | None:
        """The record of that key, where it has all that was asked for."""
        record = self._by_key.get(key)
        if record is None or record.status != OK:
            return record
        exact = record.precision == REFERENCE and record.model.transform == NOTHING
        compares = self._config.compare and not exact
        if compares and record.comparison.kl_mean is None:
            return None
        name = record.result.token_nll_file
        kept = name is not None and (self._out / name).exists()
        return record if kept or not self._config.per_token else None

    def add(self, record: Record) -> Record:
        """Append a record, with what an earlier call kept of the same and this one didn't ask."""
        if earlier := self._by_key.get(record.key):
            result = _completed(record.result, earlier.result)
            comparison = _completed(record.comparison, earlier.comparison)
            record = dataclasses.replace(record, result=result, comparison=comparison)
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


def _completed(new: T, earlier: T) -> T:
    """A group of fields, with those of an earlier record of the same result where it has None."""
    missing = {k: v for k, v in vars(earlier).items() if getattr(new, k) is None}
    return dataclasses.replace(new, **missing)
