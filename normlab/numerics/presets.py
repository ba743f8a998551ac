"""Datapaths by name, and the one reader of what stands in a column: a name or a precision."""

import re
from dataclasses import asdict
from pathlib import Path

import yaml

from normlab.config import build, require
from normlab.numerics.datapath import Datapath
from normlab.numerics.precision import Precision
from normlab.registry import Registry

_NAME = re.compile(r"[A-Za-z0-9]\w*(-\w+)+")
FOLDER = Path(__file__).parent.parent / "configs" / "datapath"
Arithmetic = Precision | Datapath
"""How a norm computes: its sum alone, or every stage."""


class Datapaths(Registry[Datapath]):
    """Those of `configs/datapath/`, a file each, and a user's own, registered in a file of theirs:

    datapaths.add(Datapath(name="my-unit", sum="fp16:lanes16", output="bf16"))
    """

    _read = False

    def add(self, made: Datapath) -> Datapath:
        """Register it under its name, which must be free.

        Raises:
            TypeError: a stage of the wrong type.
            ValueError: a name that is taken, or could be a precision's.
        """
        require(
            bool(_NAME.fullmatch(made.name)),
            f"datapath {made.name!r}: expected a name of words joined by hyphens, such as my-unit; "
            "without a hyphen a column is a precision",
        )
        build(Datapath, asdict(made))  # which looks at types
        self._loaded()
        return self.register(made.name)(made)

    def _loaded(self) -> dict[str, Datapath]:
        if not self._read:
            found = [_from_file(path) for path in sorted(FOLDER.glob("*.yaml"))]
            self._read = True
            for path in found:
                self.add(path)
        return self._things


def _from_file(path: Path) -> Datapath:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        require(isinstance(said, dict), f"{said!r}: expected fields of a datapath, `FIELD: VALUE`")
        return build(Datapath, said | {"name": path.stem})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


datapaths = Datapaths("datapath")


def arithmetic(text: str | Arithmetic) -> Arithmetic:
    """A datapath by its name, or a precision by its string; either of them as it is.

    Raises:
        TypeError, ValueError: as `Precision.parse`.
        UnknownNameError: a name that no datapath has.
    """
    if isinstance(text, str) and "-" in text:  # which no precision has
        return datapaths[text]
    return text if isinstance(text, Datapath) else Precision.parse(text)
