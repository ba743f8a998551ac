"""Where compiled programs are kept from one process to the next."""

import hashlib
import platform
from pathlib import Path

import jaxlib


def directory(root: Path) -> Path:
    """The folder below `root` for this jaxlib and this processor.

    A program that was compiled for one processor may not run on another, and home folders are
    shared between machines.
    """
    features = hashlib.sha256(processor().encode()).hexdigest()[:12]
    return root / "xla" / f"jaxlib-{jaxlib.__version__}-{platform.machine()}-{features}"


def processor() -> str:
    """The processor's model and features, as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    told = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join(sorted(told))
