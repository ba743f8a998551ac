"""A command in a process of its own: how long it takes, and how much memory."""

import os
import subprocess
import time
from pathlib import Path


def measured(command: list[str], cwd: Path, **environment: str) -> dict[str, float]:
    """Seconds of the wall and of the processor, and the most memory that was resident, in MiB.

    JAX's own cache is where normlab puts it. A command that fails ends the benchmark.
    """
    whole = os.environ | environment
    whole.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, env=whole, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed in {cwd}, see above")
    cpu = used.ru_utime + used.ru_stime
    return {"wall": time.monotonic() - began, "cpu": cpu, "peak MiB": used.ru_maxrss / 1024}
