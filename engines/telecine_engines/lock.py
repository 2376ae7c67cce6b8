"""One build of a bundle at a time: a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telecine.errors import EngineError

FILE_NAME = ".lock"


@contextmanager
def build_lock(engines: Path) -> Iterator[None]:
    """Hold the lock of a folder of engines, which is made if it is missing.

    The system lets go of the lock when its process ends, however it ends: nothing stale stays behind. The file itself
    stays: removing it would let two processes lock two files of one name.

    Raises:
        EngineError: another process builds there, or the folder cannot be written.
    """
    try:
        engines.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(engines / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EngineError(
            f"{engines} cannot be written ({error.strerror or error})",
            expected="a folder for plans, on a disk with room",
            fix="Choose one elsewhere: --engines DIR (and load the bundle with engines=DIR).",
        ) from error
    try:
        _lock(descriptor, engines)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)  # for people who look who it is
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, engines: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise EngineError(
            f"process {owner} builds in {engines} at this moment",
            expected="one build of a bundle at a time",
            fix="Wait for it: what it builds need not be built again. Or build into another folder: --engines DIR",
        ) from error
    except OSError as error:
        raise EngineError(
            f"{engines} is on a file system without locks ({error.strerror or error})",
            expected="one that can keep two builds apart",
            fix="Build on a local disk: --engines DIR, then copy the folder.",
        ) from error
