"""Records as JSON lines in a file."""

import os
from pathlib import Path
from typing import Any

from normlab.results.record import Record


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
