"""Where a result comes from: code, packages, device."""

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import normlab
from normlab.runs import jax_settings, user_files

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "datasets")


def code_state() -> str:
    """The commit of the checkout that this code runs from, marked where files differ from it."""
    root = Path(normlab.__file__).resolve().parent.parent
    if _git(root, "rev-parse", "--show-toplevel") != str(root):  # installed into another checkout
        return "not a checkout"
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12") or "not a checkout"


def _git(root: Path, *words: str) -> str:
    """What git says of a folder, whatever repository the environment names; "" where nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True, text=True, timeout=10, check=False, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def source_hash() -> str:
    """SHA-256 of the library's Python sources, committed or not."""
    root = Path(normlab.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def provenance() -> dict[str, Any]:
    """Everything about this process that an evaluation's number can depend on, ready for JSON."""
    imported = user_files.by_name()
    told = {"imports": imported} if imported else {}
    return _of_process() | {"jax_settings": jax_settings.not_default()} | told


@functools.cache
def _of_process() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "normlab": normlab.__version__,
        "code": code_state(),
        "source": source_hash(),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
    }
