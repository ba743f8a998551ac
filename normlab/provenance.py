"""Where a result comes from: code, packages, device."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import normlab

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "datasets")


def code_state() -> str:
    """The commit of the checkout that this code runs from, marked where files differ from it."""
    here = Path(normlab.__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not a checkout"
    return found.stdout.strip() or "not a checkout"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def provenance() -> dict[str, Any]:
    """Everything about this process that a number can depend on, ready for JSON."""
    device = jax.devices()[0]
    return {
        "normlab": normlab.__version__,
        "code": code_state(),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
    }
