"""What computed a run, and whether it is the same now: its norm's source, and a user's files."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normlab.config import require
from normlab.model import placements
from normlab.norms import norms
from normlab.norms.source import source_hash
from normlab.runs import user_files
from normlab.runs.run import Run

IMPORTS = "imports"
"""The folder of a run with copies of the user's files, to be read and never imported."""


def now(norm: str, placement: str, at: Iterable[str] = ()) -> dict[str, Any]:
    """For a run's provenance: hashes of its norms' sources, and of the files that they need.

    Args:
        norm: the model's type.
        placement: its placement.
        at: types of single sites.
    """
    others = {name: source_hash(norms[name]) for name in dict.fromkeys(at)}
    kinds = [norms[name] for name in (norm, *others)]
    needed = user_files.defining(placements[placement].wire, *kinds)
    told = {"norm_source": source_hash(norms[norm]), "imports": needed}
    return told | ({"norm_at_source": others} if others else {})


def keep(directory: Path, names: Iterable[str]) -> None:
    """Copy imported files into a run's directory."""
    for path in user_files.loaded():
        if Path(path).name in names:
            (directory / IMPORTS).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, directory / IMPORTS / Path(path).name)


def check(run: Run, allowed: bool) -> list[str]:
    """What is another source now than when a run was trained, in words; of older runs nothing.

    Of a file that defines its norm, what the norm uses counts; of one that defines its placement,
    the whole file.

    Raises:
        ValueError: a file was not imported; or something is another, and that isn't `allowed`.
    """
    then, where, config = run.read("provenance.json"), run[IMPORTS], run.read("config.yaml")
    if not then:
        return []
    imported = user_files.by_name()
    for name in then.get("imports", {}):
        require(
            name in imported,
            f"{run.directory} was trained with imports=[{name}]: name that file again. Nothing is "
            f"imported out of a run's directory; {where} has a copy to read",
        )
    sources = {config["norm"]["type"]: then.get("norm_source")} | then.get("norm_at_source", {})
    found = [
        f"the source of norm={name}"
        for name, source in sources.items()
        if source not in (None, source_hash(norms[name]))
    ]
    for name in user_files.defining(placements[config["placement"]["type"]].wire):
        if then.get("imports", {}).get(name) != imported[name]:
            found.append(f"imports=[{name}]")
    copy = f" ({where} has a copy)" if then.get("imports") else ""
    require(
        allowed or not found,
        f"{' and '.join(found)}: not what {run.directory} was trained with. Put it back{copy}, or "
        "say allow_changed_source=true, which the record repeats",
    )
    return found
