"""What this process takes of the machine's memory: now, at most so far, and during a task."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
INTERVAL = 0.02  # seconds


@dataclass(slots=True)
class MemoryUse:
    """Bytes that a run adds to the process: its `limit`, the peak that was `predicted` before it, and the one that was
    `measured`, from when the pipeline was opened. None is unknown: an earlier peak of the process hides a lower one,
    and only Linux tells. `device`: what was measured on a GPU between stages, where networks keep what they took; what
    other processes took meanwhile is in it."""

    limit: int | None = None
    predicted: int | None = None
    measured: int | None = None
    device: int | None = None


def anonymous_bytes() -> int:
    """Resident anonymous memory now (RssAnon: mapped weights are the page cache's, not ours)."""
    found = _status("RssAnon")
    if found is None:
        raise RuntimeError(f"{STATUS} has no RssAnon")
    return found


def resident_bytes() -> int | None:
    """Resident memory now, with the pages of mapped files that were read; None where the system does not tell."""
    return _status("VmRSS")


def highest_resident_bytes() -> int | None:
    """The most that `resident_bytes` has been in this process.

    Not `ru_maxrss`: a process that was started inherits the peak of the one that started it.
    """
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


class PeakMemory:
    """Context manager that samples anonymous memory in a thread; `.peak` is the largest sample, in bytes.

    It is what a long task adds to a machine: pages of mapped files are left out.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.peak = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self.peak = max(self.peak, anonymous_bytes())
