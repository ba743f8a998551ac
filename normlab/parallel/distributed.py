"""Several processes that run one program together, through `jax.distributed`."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from normlab.config import field, require

AUTO = "auto"


@dataclass(frozen=True)
class HostsConfig:
    """Which processes belong together; each is started with the same command."""

    coordinator: str | None = field(
        None,
        "several processes: auto (Slurm, MPI, TPU or Kubernetes say which), or HOST:PORT of the "
        "first of them; null: one process",
    )
    process: int | None = field(None, "which of them this one is, from 0; needs a HOST:PORT")
    count: int | None = field(None, "how many they are; needs a HOST:PORT")

    def __post_init__(self) -> None:
        address, process, count = self.coordinator, self.process, self.count
        if address in (None, AUTO):
            require(
                process is None and count is None,
                f"hosts.process = {process} and hosts.count = {count} mean nothing with "
                f"hosts.coordinator = {address}: expected HOST:PORT, such as 10.0.0.1:1234",
            )
            return
        host, _, port = str(address).rpartition(":")
        require(
            bool(host) and port.isdigit(),
            f"hosts.coordinator = {address!r}: expected auto or HOST:PORT, such as 10.0.0.1:1234",
        )
        require(
            process is not None and count is not None and 0 <= process < count,
            f"hosts.process = {process}, hosts.count = {count}: beside an address, expected both, "
            "and 0 ≤ process < count",
        )


@contextmanager
def joined_processes(config: HostsConfig) -> Iterator[None]:
    """Join the other processes, before anything has touched a device; the first alone prints.

    Raises:
        ValueError: they could not be found, JAX has begun without them, or it can't begin.
    """
    if config.coordinator is not None and not jax.distributed.is_initialized():
        _join(config)
    require_devices()
    if is_main_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def require_devices() -> None:
    """Begin JAX's backend.

    Raises:
        ValueError: `JAX_PLATFORMS` names one that isn't here.
    """
    asked = jax.config.values["jax_platforms"]
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        if not asked:
            raise
        why = (str(error).splitlines() or ["none of its devices is here"])[0].partition(" (set ")[0]
        raise ValueError(
            f"JAX_PLATFORMS={asked}: JAX can't begin there ({why}); expected one that it has "
            "here, such as JAX_PLATFORMS=cpu, or nothing"
        ) from error


def _join(config: HostsConfig) -> None:
    given: dict[str, Any] = {}
    if config.coordinator != AUTO:
        given = {
            "coordinator_address": config.coordinator,
            "num_processes": config.count,
            "process_id": config.process,
        }
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        asked = f"hosts.coordinator={config.coordinator}"
        if config.coordinator == AUTO:
            asked += " (neither Slurm nor MPI, TPU or Kubernetes? then give HOST:PORT)"
        else:
            asked += f" hosts.process={config.process} hosts.count={config.count}"
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{asked}: the processes did not come together: {why}") from error


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def on_main_process(act: Callable[[], None]) -> None:
    """Let the first process do something while the others wait; they fail where it fails."""
    failure: Exception | None = None
    if is_main_process():
        try:
            act()
        except Exception as error:
            failure = error
    failed = _largest(failure is not None)
    if failure is not None:
        raise failure
    require(not failed, "the first process ended with an error; see what it says")


@contextmanager
def private_copy(directory: Path, shared: str | None = None) -> Iterator[Path]:
    """The directory for the first process; for another one a copy of it that is thrown away.

    All processes run the same code on the same numbers. So they come to the same decisions (when to
    stop, what is done already) by what they have written; only the first one's is kept.

    Args:
        directory: what is written to; need not be there yet.
        shared: a folder in it that isn't copied but used by all of them.
    """
    if jax.process_count() == 1:
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = directory
        _largest(0)  # the first one has written all that it is going to
        if not is_main_process():
            copy = Path(scratch) / directory.name
            _copy(directory, copy, shared)
        _largest(0)  # and writes on when all have their copies
        yield copy
        _largest(0)  # what the first one leaves, the others find


def _copy(directory: Path, to: Path, shared: str | None) -> None:
    if directory.is_dir():
        shutil.copytree(directory, to, ignore=lambda _, names: {str(shared)} & set(names))
    to.mkdir(exist_ok=True)
    if shared is not None:
        (to / shared).symlink_to((directory / shared).resolve())


def agreed_maximum(number: int | None, due: bool = True) -> int | None:
    """The largest number that any process has, or None where none has one; all must call it.

    Args:
        number: this one's.
        due: where it isn't, nobody is asked and the answer is None. (One process needn't ask.)
    """
    if jax.process_count() == 1:
        return number
    return (_largest(number or 0) or None) if due else None


def _largest(number: int) -> int:
    """The largest of all processes' numbers: a barrier, too."""
    if jax.process_count() == 1:
        return int(number)
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
