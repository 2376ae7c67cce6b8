"""Stages of a run, on a clock that the test turns."""

from __future__ import annotations

import pytest

from telecine import results
from telecine.results import stopwatch


def test_loading_counts_for_itself_wherever_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(results.time, "perf_counter", lambda: float(next(ticks)))
    timings: dict[str, float] = {}
    stage = stopwatch(timings)
    with stage("total"):  # 0
        with stage("text"), stage("load"):  # 1, 2, 3, 4
            pass
        with stage("denoise"):  # 5
            for _ in range(2):
                with stage("network"):  # 6, 7, 8, 9
                    pass
        # 10, 11
    assert timings == {"total": 11, "text": 2, "load": 1, "denoise": 5, "network": 2}
