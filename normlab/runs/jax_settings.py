"""JAX's own settings, as far as they aren't at their defaults and may change a result.

They come from the environment (`JAX_ENABLE_X64=1`) or from `jax.config.update`. A record has them,
and a run is resumed under those that it began with.
"""

import functools
import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jaxlib

from normlab.data import DataConfig
from normlab.data.cache import cached

HARMLESS = {
    "caches": ("jax_compilation_cache", "jax_enable_compilation_cache", "jax_persistent_cache",
               "jax_raise_persistent_cache", "jax_share_binary"),
    "what is logged, dumped and traced": ("jax_log", "jax_explain", "jax_compiler_detailed_logging",
               "jax_captured_constants", "jax_dump_ir", "jax_include", "jax_hlo_source_file",
               "jax_source_url", "jax_pprint", "jax_traceback", "jax_tracer_error",
               "jax_send_traceback", "jax_pallas_verbose"),
    "checks, which stop a program or don't": ("jax_debug", "jax_check", "jax_enable_checks",
               "jax_transfer_guard", "jax_distributed_debug"),
    "devices, of which each session has its own line": ("jax_platform", "jax_xla_backend",
               "jax_num_cpu_devices", "jax_cuda_visible", "jax_rocm_visible", "jax_oneapi_visible"),
    "random numbers, which model/keys.py pins": ("jax_default_prng_impl", "jax_enable_custom_prng",
               "jax_threefry_partitionable", "jax_legacy_prng_key"),
}  # fmt: skip
"""How settings begin that change no result, by what they are."""

PRINT = "import json, jax; print(json.dumps(jax.config.values, default=str))"


def not_default() -> dict[str, Any]:
    """Name → value of each setting that isn't at its default and isn't `HARMLESS`."""
    now = json.loads(json.dumps(jax.config.values, default=str))
    default, harmless = _defaults(), tuple(chain(*HARMLESS.values()))
    return {
        name: value
        for name, value in sorted(now.items())
        if name in default and value != default[name] and not name.startswith(harmless)
    }


def refuse_others(where: str, then: dict[str, Any]) -> None:
    """Refuse to go on under other settings than a run began with.

    Args:
        where: its directory.
        then: what `not_default` was.

    Raises:
        ValueError: naming the first that differs, its two values, and how to set it.
    """
    now = not_default()
    for name in sorted(now.keys() | then.keys()):
        default = _defaults().get(name)
        before, here = then.get(name, default), now.get(name, default)
        if before != here:
            raise ValueError(
                f"{where} began with JAX's {name} = {before}, which is {here} here: expected "
                f"{name.upper()}={before} in the environment, or another run=DIR"
            )


@functools.cache
def _defaults() -> dict[str, Any]:
    """Every setting's default: what a process has whose environment says nothing."""

    def make(folder: Path) -> None:
        (folder / "values.json").write_text(_asked())

    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "python": sys.version}
    try:
        folder = cached(DataConfig().cache_folder(), "jax", versions, make)
        return json.loads((folder / "values.json").read_text())
    except OSError:  # no cache
        return json.loads(_asked())


def _asked() -> str:
    names = {name.upper() for name in jax.config.values}
    told = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("JAX")}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=told, capture_output=True, text=True, check=True
    )
    return done.stdout
