"""What is changed of Orbax, in this process: how it looks for files, and what it prints."""

import logging
import sys
from collections.abc import Iterator
from functools import cache
from inspect import iscoroutine
from pathlib import Path
from typing import Any

from etils import epath


@cache
def patch() -> None:
    """Change both, once."""
    epath.gpath.PosixGPath.glob = _glob
    _hush()


def _glob(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Files below a folder whose own path is no pattern.

    Orbax's would read a bracket or star of the path so: what several processes or parts have
    written is then not found, and never read back.
    """
    return (type(self)(found) for found in Path(self).glob(pattern))


def _hush() -> None:
    """Keep Orbax from printing what no one can make use of; what went wrong, it raises too.

    It logs a traceback for each part of a save that fails: ten for a full disk. Where a part of a
    load or a save fails, it closes the event loop that the others belong to. When one of them ends,
    or is collected, at any later time and on any thread, the interpreter prints a traceback.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not iscoroutine(unraisable.object):
            before(unraisable)

    sys.unraisablehook = hook
