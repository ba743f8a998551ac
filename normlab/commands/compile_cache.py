"""Where compiled programs are kept from one process to the next.

Two thirds of a short run is XLA's compiler. JAX can keep what it made in a folder; the commands
give it one below normlab's cache (`NORMLAB_CACHE`, else `~/.cache/normlab`). Where nothing can be
written, and with `NORMLAB_XLA_CACHE=off`, each process compiles for itself. Who has told JAX
himself, by `JAX_COMPILATION_CACHE_DIR`, has told it all.
"""

import hashlib
import os
import platform
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import jaxlib

from normlab.registry import choice

SWITCH = "NORMLAB_XLA_CACHE"
"""Environment variable: on (as where it isn't set) or off."""

ROOM = 2**30
"""Bytes that the folder may hold when a command starts; what was used least lately goes first."""

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # of small programs there are hundreds
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
"""What JAX is told beside the folder, unless the environment says it.

Its own bound, `jax_compilation_cache_max_size`, is not used: it reads the whole folder each time
that a program is kept (0.1 s at 500 of them), behind a lock that not every file system has.
"""


@cache
def use() -> None:
    """Let this process keep what it compiles, and take what an earlier one has kept.

    Raises:
        UnknownNameError: `NORMLAB_XLA_CACHE` is neither on nor off.
    """
    import jax  # not before: who asks for the `directory` may still set what JAX reads at its start

    from normlab.data import DataConfig
    from normlab.data.cache import trim

    asked = choice(SWITCH, os.environ.get(SWITCH) or "on", ("on", "off"))
    if asked == "off" or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = directory(DataConfig().cache_folder())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"room for one byte")
    except OSError as error:
        print(f"compiled programs are not kept ({SWITCH}=off: no notice): {error}", file=sys.stderr)
        return
    trim(folder.parent, ROOM)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    # An entry that is damaged, or was removed just now, is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


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
