"""What computed a run, and whether it is the same now: its norm's source, and a user's files."""

import shutil
from pathlib import Path
from typing import Any

from normlab.config import require
from normlab.norms import norms
from normlab.norms.source import source_hash
from normlab.runs import user_files
from normlab.runs.run import Run

IMPORTS = "imports"
"""The folder of a run with copies of the user's files, to be read and never imported."""


def now(norm: str) -> dict[str, Any]:
    """For a run's provenance: the hash of its norm's source, and of each imported file by name."""
    return {"norm_source": source_hash(norms[norm]), "imports": user_files.by_name()}


def keep(directory: Path) -> None:
    """Copy the imported files into a run's directory."""
    for path in user_files.loaded():
        (directory / IMPORTS).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / IMPORTS / Path(path).name)


def check(run: Run, allowed: bool) -> list[str]:
    """What is another source now than when a run was trained, in words; of older runs nothing.

    Raises:
        ValueError: a file was not imported; or something is another, and that isn't `allowed`.
    """
    then, where = run.read("provenance.json"), run[IMPORTS]
    if not then:
        return []
    norm, imported = run.read("config.yaml")["norm"]["type"], user_files.by_name()
    found = list[str]()
    for name, digest in then.get("imports", {}).items():
        require(
            name in imported,
            f"{run.directory} was trained with imports=[{name}]: name that file again. Nothing is "
            f"imported out of a run's directory; {where} has a copy to read",
        )
        if imported[name] != digest:
            found.append(f"imports=[{name}]")
    known = {then.get("norm_source"), source_hash(norms[norm])} - {None}
    if len(known) == 2 and not found:
        found.append(f"the source of norm={norm}")
    copy = f" ({where} has a copy)" if then.get("imports") else ""
    require(
        allowed or not found,
        f"{' and '.join(found)}: not what {run.directory} was trained with. Put it back{copy}, or "
        "say allow_changed_source=true, which the record repeats",
    )
    return found
