"""Records as JSON lines in a file."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normlab.locks import locked
from normlab.results.record import Record

log = logging.getLogger(__name__)


class RecordFile:
    """Records as JSON lines in a file: read what is there, add one at a time.

    A line is written and flushed to disk at once, by one process at a time. A half line that a kill
    has left at the end is dropped when the file is read, and cut off before the next record is
    added. Another line that is no record is named and left out; `mend` takes it out of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Record]:
        """All whole records, in the order in which they were added."""
        found, bad = self._found()
        for number, error in bad.items():
            log.warning("%s, line %d is no record and is left out: %s", self.path, number, error)
        return list(found.values())

    def mend(self) -> None:
        """Move lines that are no records to a file beside this one, and say so."""
        with self._held():
            found, bad = self._found()
            if not bad:
                return
            lines = self._lines()
            aside = self.path.with_suffix(".bad")
            with aside.open("a", encoding="utf-8") as file:
                file.writelines(f"{lines[n]}\n" for n in bad)
            fresh = self.path.with_suffix(".half")
            fresh.write_text("".join(f"{lines[n]}\n" for n in found), encoding="utf-8")
            fresh.replace(self.path)
        for number, error in bad.items():
            log.warning(
                "%s, line %d was no record and is now in %s: %s", self.path, number, aside, error
            )

    def add(self, record: Record) -> None:
        """Append one record."""
        with self._held(), self.path.open("ab+") as file:
            self._cut_half_line(file)
            file.write(record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            yield

    def _lines(self) -> dict[int, str]:
        """Whole lines by their numbers, from 1."""
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return {n: line for n, line in enumerate(text.split("\n")[:-1], start=1) if line}

    def _found(self) -> tuple[dict[int, Record], dict[int, Exception]]:
        """By the numbers of their lines the records, and what is wrong with other lines."""
        found, bad = dict[int, Record](), dict[int, Exception]()
        for number, line in self._lines().items():
            try:
                found[number] = Record.from_json(line)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                bad[number] = error
        return found, bad

    @staticmethod
    def _cut_half_line(file: Any) -> None:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
