"""What a checkpoint's load that failed says: the checkpoint is damaged, or it can't be read now."""

import os
import re
from pathlib import Path


class CorruptCheckpointError(ValueError):
    """A checkpoint whose content can't be understood, or isn't what was saved."""


_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_DAMAGED = {"DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"}
"""Of the statuses with which TensorStore's errors begin, those that are about content."""


def root(error: BaseException) -> BaseException:
    """What an error began as: to Orbax each is an incompatible handler."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def said(error: BaseException) -> str:
    """An error in one line, without TensorStore's account of all its settings."""
    line = (str(error).splitlines() or [""])[0]
    told = re.split(r" \[(?:tensorstore_spec|os_error_code|source loc)", line)[0]
    return f"{type(error).__name__}: {told}"


def _is_damage(cause: BaseException) -> bool:
    """Whether an error is about what a checkpoint holds, not about this machine at this moment.

    What isn't known as damage is none: memory, rights or a server may be there again tomorrow.
    """
    if isinstance(cause, OSError):
        return isinstance(cause, _ABSENT)
    status = re.match(r"[A-Z_]+(?=: )", str(cause))
    if status and status[0] not in _DAMAGED:
        return False
    return isinstance(cause, (ValueError, LookupError, TypeError, AttributeError))


def _obstacle(where: Path) -> OSError | None:
    """What the system says when all files are read: what Orbax may not see, it calls missing."""

    def refuse(error: OSError) -> None:
        raise error

    try:
        for folder, _, names in os.walk(where, onerror=refuse):
            for name in names:
                with open(Path(folder, name), "rb") as file:
                    while file.read(1 << 24):
                        pass
    except _ABSENT:
        return None
    except OSError as error:
        return error
    return None


def unread(where: Path, error: Exception) -> CorruptCheckpointError | OSError:
    """What to raise where loading a checkpoint has raised `error`."""
    cause = root(error)
    found = _obstacle(where) if _is_damage(cause) else cause
    if found is None:
        return CorruptCheckpointError(f"checkpoint {where} can't be read ({said(cause)})")
    return OSError(
        f"checkpoint {where} can't be read now ({said(found)}); it is left as it is, and the same "
        "command tries again"
    )
