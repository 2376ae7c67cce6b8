"""Samples of a measurement: medians, what lies around them, and how they grow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some samples, and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """Of at least one sample; quartiles are linear between samples, as NumPy's."""
        values = tuple(samples)
        ordered = sorted(values)

        def quantile(part: float) -> float:
            place = part * (len(ordered) - 1)
            below = math.floor(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (place - below) * (ordered[above] - ordered[below])

        return cls(median=statistics.median(ordered), low=quantile(0.25), high=quantile(0.75), samples=values)


def interleaved(competitors: Sequence[T], rounds: int) -> Iterator[T]:
    """Every competitor once a round, each round begun by the next one.

    What disturbs a machine for a while then disturbs all of them, and no one always runs after the same other one.
    """
    for turn in range(rounds):
        first = turn % len(competitors)
        yield from (*competitors[first:], *competitors[:first])


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """p of cost = a * size**p, by least squares of the logarithms; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope
