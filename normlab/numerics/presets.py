"""Datapaths by name, and the one reader of what stands in a column: a name or a precision."""

from pathlib import Path

import yaml

from normlab.config import build
from normlab.numerics.datapath import Datapath
from normlab.numerics.precision import Precision
from normlab.registry import Registry, unknown

FOLDER = Path(__file__).parent.parent / "configs" / "datapath"
Arithmetic = Precision | Datapath
"""How a norm computes: its sum alone, or every stage."""


class Datapaths(Registry[Datapath]):
    """Those of `configs/datapath/`, a file each, and a user's own, registered in a file of theirs:

    datapaths.add(Datapath(name="my-unit", sum="fp16:lanes16", output="bf16"))
    """

    def add(self, made: Datapath) -> Datapath:
        """Register it under its name."""
        return self.register(made.name)(made)

    def _loaded(self) -> dict[str, Datapath]:
        for path in sorted(FOLDER.glob("*.yaml")):
            if path.stem not in self._things:
                said = yaml.safe_load(path.read_text(encoding="utf-8"))
                self._things[path.stem] = build(Datapath, said | {"name": path.stem})
        return self._things


datapaths = Datapaths("datapath")


def arithmetic(text: str | Arithmetic) -> Arithmetic:
    """A datapath by its name, or a precision by its string; either of them as it is.

    Raises:
        TypeError, ValueError: as `Precision.parse`.
        UnknownNameError: a name that no datapath has.
    """
    if isinstance(text, Datapath) or (isinstance(text, str) and text in datapaths):
        return text if isinstance(text, Datapath) else datapaths[text]
    if isinstance(text, str) and "-" in text:  # which no precision has
        raise unknown("datapath", text, datapaths)
    return Precision.parse(text)
