"""`python -m evaluate probe MODULE:NAME`: which arithmetic a kernel has.

The kernel is f(x, weight, eps) on rows, PyTorch's, Flax's, or onnxruntime's (docs/probe.md).
"""

import argparse
import dataclasses
from collections.abc import Sequence

import yaml

from normlab.commands import compile_cache
from normlab.commands.errors import explained
from normlab.commands.help import entry, shown
from normlab.config import build, describe, field, require
from normlab.registry import choice

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How a kernel is probed."""

    dtype: str = field("float32", f"of the rows and of γ: {', '.join(DTYPES)}")
    d: int = field(768, "width of a row")
    compiled: bool = field(False, "by torch.compile or jax.jit first")
    seed: int = field(0, "of the rows")

    def __post_init__(self) -> None:
        short = tuple(DTYPES.values())
        choice("dtype", self.dtype, (*DTYPES, *short))


def main(arguments: Sequence[str]) -> None:
    """Print what was found."""
    fields = "\n".join(
        entry(f"{path}={shown(v)}", text) for path, v, text in describe(ProbeConfig())
    )
    parser = argparse.ArgumentParser(
        prog="python -m evaluate probe",
        description=__doc__,
        epilog=fields,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernel", metavar="MODULE:NAME", help="torch.nn.functional:rms_norm, …")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    asked = parser.parse_args(arguments)
    with explained():
        for given in asked.fields:
            require("=" in given, f"{given!r}: expected FIELD=VALUE, such as d=768")
        pairs = dict(given.split("=", 1) for given in asked.fields)
        config = build(ProbeConfig, {key: yaml.safe_load(v) for key, v in pairs.items()})
        compile_cache.use()
        from normlab.probe import Kernel, probe  # slow to import: help comes first
        from normlab.probe.adapters import load
        from normlab.probe.report import report

        dtype = DTYPES.get(config.dtype, config.dtype)
        kernel = Kernel(load(asked.kernel, config.compiled), config.d, dtype, asked.kernel)
        print(report(probe(kernel, seed=config.seed)))
