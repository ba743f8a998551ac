"""Results: records as JSON lines, paired differences, tables."""

from normlab.results.paired import Difference, paired_difference
from normlab.results.record import Record, RecordFile
from normlab.results.table import Table, tables

__all__ = ["Difference", "Record", "RecordFile", "Table", "paired_difference", "tables"]
