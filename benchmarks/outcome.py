"""What a benchmark found, with the machine and the versions that it was found on."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax


def keep(result: dict[str, Any], out: Path | None) -> None:
    """Print the result as JSON, and write it where a file is asked for."""
    packages = [name for name in ("jax", "torch", "transformers") if name in sys.modules]
    result = result | {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
