"""A user's own files: `imports=[my_norms.py]` registers what they define, in this process only."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normlab.config import require

_LOADED: dict[str, str] = {}
_PREFIX = "normlab_imports."


def loaded() -> dict[str, str]:
    """Path → SHA-256 of each file that this process has imported."""
    return dict(_LOADED)


def by_name() -> dict[str, str]:
    """The same by the files' names alone, which are all different."""
    return {Path(path).name: digest for path, digest in _LOADED.items()}


def defining(*things: Any) -> dict[str, str]:
    """`by_name` of those files alone that define one of these classes or functions."""
    modules = {getattr(thing, "__module__", "") for thing in things}
    return {n: d for n, d in by_name().items() if f"{_PREFIX}{n.removesuffix('.py')}" in modules}


def load(files: Iterable[str]) -> None:
    """Import each file once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no Python file, raises an error (which is named), has the name of another
            one, or has changed since it was imported.
    """
    for file in files:
        _load(Path(file).resolve(), file)


def _load(path: Path, written: str) -> None:
    where = f"imports=[{written}]"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such file; expected a Python file, NAME.py")
    require(path.suffix == ".py", f"{where}: expected a Python file, NAME.py")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if str(path) in _LOADED:
        require(digest == _LOADED[str(path)], f"{where}: changed since this process imported it")
        return
    require(path.name not in by_name(), f"{where}: another imported file is called {path.name} too")
    name = f"{_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    _LOADED[str(path)] = digest
