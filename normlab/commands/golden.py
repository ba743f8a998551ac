"""`python -m evaluate golden`: a datapath's vectors for a testbench, stage by stage."""

from normlab.commands.launch import launch
from normlab.evaluation.golden import GoldenConfig, write

EXAMPLES = """
python -m evaluate golden datapath=simd16-table64 pretrained=smollm2-135m out=golden/simd16
python golden/simd16/reproduce.py                              NumPy alone: every bit again
"""


def golden(config: GoldenConfig, asked: object = ()) -> None:
    """Write and say where."""
    out, said = write(config)
    print(f"{said}\n\nwritten to {out}: unit.json, vectors.npz, a .hex for each, reproduce.py")


def main() -> None:
    """What `python -m evaluate golden` does."""
    launch("golden", GoldenConfig, golden, EXAMPLES)
