"""Records as JSON lines, paired differences, spread, tables."""

from normlab.results.paired import Difference, paired_difference
from normlab.results.record import Record, latest
from normlab.results.record_file import RecordFile
from normlab.results.table import Table, tables

__all__ = ["Difference", "Record", "RecordFile", "Table", "latest", "paired_difference", "tables"]
