"""What a benchmark found, with the machine and the versions that it was found on."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
"""Instructions that decide how fast a product is, as /proc/cpuinfo calls them."""


def processor() -> str:
    """Its name as Linux has it, and which of `VECTORS` it has."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = told.get("flags", told.get("Features", "")).split()
    name = told.get("model name", platform.machine())
    return f"{name} ({', '.join(v for v in VECTORS if v in flags)})"


def keep(result: dict[str, Any], out: Path | None) -> None:
    """Print the result as JSON, and write it where a file is asked for."""
    packages = [name for name in ("jax", "torch", "transformers") if name in sys.modules]
    result = result | {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {processor()}",
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
