"""`python -m evaluate golden`: a datapath's vectors for a testbench, stage by stage."""

from collections.abc import Sequence

from normlab.commands import compile_cache
from normlab.commands.help import print_help
from normlab.commands.launch import imports, told
from normlab.evaluation.golden import GoldenConfig, write
from normlab.runs import user_files

EXAMPLES = """
python -m evaluate golden datapath=simd16-table64 pretrained=smollm2-135m out=golden/simd16
python golden/simd16/reproduce.py                              NumPy alone: every bit again
"""


def main(arguments: Sequence[str]) -> None:
    """Write and say where."""
    if {"-h", "--help"} & set(arguments):
        print_help("golden", GoldenConfig, EXAMPLES)
        return
    compile_cache.use()
    user_files.load(imports(arguments))
    out, said = write(told(GoldenConfig, arguments))
    print(f"{said}\n\nwritten to {out}: unit.json, vectors.npz, a .hex for each, reproduce.py")
