"""Records as JSON lines, paired differences, spread, tables."""

from normlab.results.fields import Comparison, ModelInfo, Provenance, Ranges, Result, TextInfo
from normlab.results.paired import Difference, paired_difference
from normlab.results.record import Record, latest
from normlab.results.record_file import RecordFile
from normlab.results.table import Table, tables

__all__ = [
    "Comparison",
    "Difference",
    "ModelInfo",
    "Provenance",
    "Ranges",
    "Record",
    "RecordFile",
    "Result",
    "Table",
    "TextInfo",
    "latest",
    "paired_difference",
    "tables",
]
