"""`python -m evaluate golden`: a datapath's vectors for a testbench, stage by stage."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from normlab.commands import compile_cache
from normlab.commands.help import print_help
from normlab.commands.launch import imports
from normlab.config import build, require
from normlab.evaluation.golden import GoldenConfig, write
from normlab.runs import user_files

EXAMPLES = """
python -m evaluate golden datapath=simd16-table64 pretrained=smollm2-135m out=golden/simd16
python golden/simd16/reproduce.py                              NumPy alone: every bit again
"""


def told(arguments: Sequence[str]) -> GoldenConfig:
    """What the fields of a command line say. Hydra would take `datapath=` for a group of files."""
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        require(not override.is_sweep_override(), f"{override.input_line}: expected one value")
        *groups, name = override.key_or_group.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = override.value()
    return build(GoldenConfig, values)


def main(arguments: Sequence[str]) -> None:
    """Write and say where."""
    if {"-h", "--help"} & set(arguments):
        print_help("golden", GoldenConfig, EXAMPLES)
        return
    compile_cache.use()
    user_files.load(imports(arguments))
    out, said = write(told(arguments))
    print(f"{said}\n\nwritten to {out}: unit.json, vectors.npz, a .hex for each, reproduce.py")
