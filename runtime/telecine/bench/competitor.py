"""What is compared: something that makes a video, and tells how long its parts took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from telecine.bench.settings import Settings

# Seconds of the wall clock, and of this process on all CPUs.
Clock = Callable[[], tuple[float, float]]


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One generation: wall seconds by stage, and (wall, CPU) seconds of every step but the first, and of it all.

    Stages: "text", "denoise" and its part in the "network", "decode", and "sound" where the model makes one.
    """

    stages: Mapping[str, float]
    steps: tuple[tuple[float, float], ...]
    total: tuple[float, float]


class Competitor(Protocol):
    """Makes videos; loads what it needs at its first."""

    name: str

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        """One generation; calls `mark` at the end of each denoising step. Returns wall seconds by stage."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Packages that do the work."""
        ...


def run(competitor: Competitor, settings: Settings, clock: Clock = now) -> Run:
    """Let a competitor make one video, and time it from outside."""
    marks: list[tuple[float, float]] = []
    start = clock()
    stages = competitor.generate(settings, lambda: marks.append(clock()))
    end = clock()
    steps = tuple(_between(before, after) for before, after in itertools.pairwise(marks))
    return Run(stages=stages, steps=steps, total=_between(start, end))


def _between(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    return after[0] - before[0], after[1] - before[1]
