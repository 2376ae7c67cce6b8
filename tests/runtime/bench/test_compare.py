"""Competitors on a clock that they turn themselves: who runs when, what is counted, which ratios come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from telecine.bench.compare import compare
from telecine.bench.competitor import run
from telecine.bench.report import as_text
from telecine.bench.settings import Settings
from telecine.errors import RequestError

SETTINGS = Settings(height=64, width=96, num_frames=9, num_inference_steps=3, repeats=3, warmups=1, threads=1)


class Turned:
    """A clock of (wall, CPU) seconds; its CPU runs at twice the speed."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.order: list[str] = []

    def __call__(self) -> tuple[float, float]:
        return self.wall, 2 * self.wall


class Fake:
    """Takes `speed` seconds a step, three times that in its first run, and 1 s to decode."""

    def __init__(self, name: str, speed: float, clock: Turned) -> None:
        self.name, self._speed, self._clock, self._runs = name, speed, clock, 0

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        self._clock.order.append(self.name)
        step = self._speed * (1 if self._runs else 3)
        self._runs += 1
        for _ in range(settings.num_inference_steps):
            self._clock.wall += step
            mark()
        self._clock.wall += 1
        steps = settings.num_inference_steps
        return {"text": 0.0, "denoise": steps * step, "network": steps * step * 0.75, "decode": 1.0}

    def versions(self) -> Mapping[str, str]:
        return {}


def test_medians_and_ratios_without_the_warm_up() -> None:
    clock = Turned()
    results = compare([Fake("ours", 2, clock), Fake("theirs", 5, clock)], SETTINGS, clock=clock)
    assert clock.order == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"]
    medians = {stage: spread["median"] for stage, spread in results["stages"]["ours"].items()}
    assert medians == {
        "text": 0, "step": 2, "step_network": 1.5, "step_host": 0.5, "decode": 1, "total": 7, "step_cpu": 4,
        "total_cpu": 14,
    }  # fmt: skip
    assert len(results["stages"]["ours"]["step"]["samples"]) == 3 * 2  # the first step of a run has no beginning
    ratios = results["times_as_fast_as"]["theirs"]
    assert ratios["step"] == 2.5
    assert ratios["total"] == 16 / 7
    assert "text" not in ratios


def test_a_run_is_timed_from_outside() -> None:
    clock = Turned()
    done = run(Fake("ours", 1, clock), SETTINGS, clock)
    assert done.total == (10, 20)
    assert done.steps == ((3, 6), (3, 6))


def test_the_report_has_every_stage_and_ratio() -> None:
    clock = Turned()
    results = compare([Fake("ours", 2, clock), Fake("theirs", 5, clock)], SETTINGS, clock=clock)
    machine = {"processor": "a CPU", "cores": 2, "load_average": 0.25}
    settings = {name: getattr(SETTINGS, name) for name in SETTINGS.__slots__}
    text = as_text(results | {"machine": machine, "settings": settings})
    assert "a CPU, 1 threads, 2 cores, load 0.2" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["step"] == ["2.0000", "(2.0000-2.0000)", "5.0000", "(5.0000-5.0000)", "2.50", "x"]
    assert rows["text"] == ["0.0000", "(0.0000-0.0000)"] * 2  # what takes no time has no ratio


@pytest.mark.parametrize(
    ("name", "value"), [("repeats", 0), ("warmups", -1), ("threads", 0), ("num_inference_steps", 1)]
)
def test_nothing_to_measure_is_refused(name: str, value: int) -> None:
    with pytest.raises(RequestError, match=name):
        Settings(**{"height": 64, "width": 96, "num_frames": 9, "threads": 1, name: value})
