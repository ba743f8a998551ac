"""A lock that one process holds at a time, also on a file system that has none."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", "flock not supported")  # filelock's, which does as we do here

NONE_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What the system says where a file system has no locks: NFS without its daemon, some of FUSE."""

PATIENCE = 10.0
"""Seconds of waiting after which it is said."""


class HeldError(ValueError):
    """Another process holds the lock; the message says what to do where that process is gone."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the file `path`, which is made and stays. A kill gives it back.

    On a file system without locks a second file stands for it while it is held; of a machine that
    died it stays.

    Raises:
        HeldError: another process holds it, and this one isn't to wait.
        OSError: the file can't be made.
    """
    lock = _acquired(path, PATIENCE if wait else 0.0, wait)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, seconds: float, wait: bool) -> BaseFileLock:
    lock: BaseFileLock = FileLock(path)
    try:
        _acquire(lock, seconds, wait)
    except (OSError, NotImplementedError) as error:  # the latter is older filelock's ENOSYS
        if getattr(error, "errno", errno.ENOSYS) not in NONE_HERE:
            raise
        lock = SoftFileLock(f"{path}.held")
        _acquire(lock, seconds, wait)
    return lock


def _acquire(lock: BaseFileLock, seconds: float, wait: bool) -> None:
    gone = "where that is gone (its node died), remove the file"
    told = f"{lock.lock_file} is held by another process; {gone}"
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        if not wait:
            raise HeldError(told) from None
        log.warning("waiting: %s", told)
        lock.acquire(timeout=-1)
