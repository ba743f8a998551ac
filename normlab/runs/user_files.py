"""A user's own files: `imports=[my_norms.py]` registers what they define, in this process only.

A run keeps a copy of them and their hashes for the record. Nothing is ever imported from there.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from normlab.config import require


def load(files: Iterable[str]) -> dict[str, str]:
    """Import each file once; path → SHA-256 of what was imported.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it raised an error (which is named), or it has changed since it was imported.
    """
    return {file: _load(Path(file)) for file in files}


def _load(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"imports=[{path}]: no such file; expected a Python file")
    now = sha256(path)
    name = f"normlab_imports_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]}"
    if name in sys.modules:
        then = sys.modules[name].__dict__["__sha256__"]
        require(now == then, f"imports=[{path}]: it has changed since this process read it")
        return now
    spec = importlib.util.spec_from_file_location(name, path)
    require(spec is not None, f"imports=[{path}]: expected a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    module.__dict__["__sha256__"] = now
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"imports=[{path}]: {type(error).__name__}: {error}") from error
    return now


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refuse_others(then: Mapping[str, str], now: Mapping[str, str], run: Path) -> None:
    """Refuse to go on with a run whose user's files are not those that it was trained with.

    Args:
        then: file name → SHA-256, as the run has it.
        now: path → SHA-256 of what this process imported.
        run: its directory.

    Raises:
        ValueError: one is missing, or is another one now.
    """
    here = {Path(path).name: digest for path, digest in now.items()}
    for name, digest in then.items():
        require(
            name in here,
            f"{run} was trained with imports=[{name}]: name that file again (nothing is imported "
            f"out of a run's directory; it keeps a copy to read, in {run / 'imports'})",
        )
        require(
            here[name] == digest,
            f"imports=[{name}]: another file than the one that {run} was trained with (SHA-256 "
            f"{digest[:12]}… then, {here[name][:12]}… now); its copy is in {run / 'imports'}; "
            "allow_changed_source=true goes on with yours, and the record says so",
        )
