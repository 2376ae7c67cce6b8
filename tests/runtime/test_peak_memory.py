"""Peak anonymous memory: what is allocated counts, what is only mapped does not."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from telecine import peak_memory
from telecine.peak_memory import PeakMemory, anonymous_bytes, highest_resident_bytes, resident_bytes

SIZE = 200 << 20


def waits_until(seen: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not seen() and time.monotonic() < end:
        time.sleep(0.01)
    return seen()


def test_allocations_count_even_when_they_are_gone() -> None:
    before = anonymous_bytes()
    with PeakMemory() as memory:
        array = np.ones(SIZE, np.uint8)
        assert waits_until(lambda: memory.peak - before > 0.9 * SIZE)  # a busy machine samples late
        del array
    assert memory.peak - before > 0.9 * SIZE
    assert anonymous_bytes() - before < 0.5 * SIZE


def test_mapped_files_do_not(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    before = anonymous_bytes()
    with PeakMemory() as memory, path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0  # every page is read
    assert memory.peak - before < 0.5 * SIZE


def test_resident_memory_counts_mapped_files_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    before = resident_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0
        during = resident_bytes()
    after, highest = resident_bytes(), highest_resident_bytes()
    assert before is not None
    assert during is not None
    assert after is not None
    assert highest is not None
    assert during - before > 0.9 * SIZE
    assert after - before < 0.5 * SIZE
    assert highest >= during - 2**20  # the kernel counts each CPU on its own, and adds up now and then


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "none")
    assert resident_bytes() is None
    assert highest_resident_bytes() is None
    with pytest.raises(RuntimeError, match="has no RssAnon"):
        anonymous_bytes()
