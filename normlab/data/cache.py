"""Folders of computed files, found by what they were computed from."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from normlab.locks import locked

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOCK = ".lock"


def cached(
    root: Path, kind: str, made_from: Mapping[str, Any], make: Callable[[Path], None]
) -> Path:
    """The folder `root/kind/<hash of made_from>`, filled by `make` if it isn't there yet.

    Each use compares the folder's manifest with `made_from` and every file with its hash; a
    folder that doesn't fit is made anew, with a notice. One process at a time makes a kind, and a
    folder appears under its name only when it is whole: a kill leaves nothing half done.

    Args:
        root: the cache.
        kind: a word that sorts entries, such as "tokens".
        made_from: everything that the files depend on; plain JSON.
        make: writes the files into the empty folder that it is given.

    Raises:
        OSError: the cache can't be written.
    """
    wanted = json.loads(json.dumps(made_from))
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    folder = root / kind / key
    if _fault(folder, wanted) is None:
        return folder
    _check_writable(folder.parent)
    with locked(folder.parent / LOCK):
        fault = _fault(folder, wanted)
        if fault is not None:  # no other process has made it meanwhile
            if folder.exists():
                log.warning("the cached %s in %s can't be used (%s)", kind, folder, fault)
            _fill(folder, wanted, make)
    return folder


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        said = f"{error.strerror}; say NORMLAB_CACHE=DIR (or data.cache=DIR), which can be written"
        raise OSError(error.errno, said, str(folder)) from error


def _fill(folder: Path, wanted: Any, make: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        make(fresh)
        files = {f.name: _sha256(f) for f in sorted(fresh.iterdir())}
        manifest = {"made_from": wanted, "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")  # whoever still reads it keeps it
        os.rename(fresh, folder)


def _fault(folder: Path, wanted: Any) -> str | None:
    """What is wrong with a cached folder; None if it may be used."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["made_from"] != wanted:
            return "made from something else"
        for name, expected in manifest["files"].items():
            if _sha256(folder / name) != expected:
                return f"{name} has changed"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def trim(folder: Path, room: int) -> None:
    """Remove files below `folder`, those used least lately, until they fill `room` bytes at most.

    Another process may do the same at the same time.
    """
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            about = path.stat()
            if path.is_file():
                found.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    filled = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if filled <= room:
            break
        with suppress(OSError):
            path.unlink()
            filled -= size
