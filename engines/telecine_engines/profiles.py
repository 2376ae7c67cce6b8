"""Optimisation profiles from axes: one that takes every size, and tighter ones where sizes lie far apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

from telecine.axes import parse_rule, resolve
from telecine.engine import Range
from telecine.errors import EngineError
from telecine.manifest import TensorSpec
from telecine.workload import AxisRange, AxisRanges

Profile = dict[str, Range]

# Kernels are chosen for a profile's `opt`, and a context holds the activations of its `max`: sizes whose inputs are
# this many times smaller than the largest get a profile without it, and so on. The stages of a two-stage run are this
# far apart.
BAND = 4


def plan_profiles(inputs: Sequence[TensorSpec], sizes: Sequence[AxisRanges]) -> tuple[Profile, ...]:
    """Profiles for a graph's inputs: the first takes every size, tuned for the largest; each later one is tighter.

    Raises:
        EngineError: an axis of the inputs that the sizes do not tell, or a range that is none.
    """
    remaining = sorted(sizes, key=lambda size: (_weight(inputs, size), _total(inputs, size)), reverse=True)
    profiles: list[Profile] = []
    while remaining:
        profile = _profile(inputs, reduce(_union, remaining))
        if profile not in profiles:
            profiles.append(profile)
        top = _weight(inputs, remaining[0])
        remaining = [size for size in remaining if _weight(inputs, size) * BAND <= top]
    return tuple(profiles)


def _union(first: AxisRanges, second: AxisRanges) -> AxisRanges:
    return {symbol: first[symbol] | second[symbol] for symbol in first}


def _weight(inputs: Sequence[TensorSpec], size: AxisRanges) -> int:
    """Positions of the largest input at the usual size."""
    return max(_positions(inputs, size))


def _total(inputs: Sequence[TensorSpec], size: AxisRanges) -> int:
    """Positions of all inputs: tells sizes apart that share their largest input, such as a text."""
    return sum(_positions(inputs, size))


def _positions(inputs: Sequence[TensorSpec], size: AxisRanges) -> list[int]:
    """Of each input at the usual size, how many there are; channels and features, which do not vary, are left out."""
    _check_axes(inputs, size)
    usual = {symbol: axis.opt for symbol, axis in size.items()}
    return [
        math.prod(side for rule, side in zip(spec.shape, resolve(spec, usual), strict=True) if isinstance(rule, str))
        for spec in inputs
    ]


def _profile(inputs: Sequence[TensorSpec], size: AxisRanges) -> Profile:
    at = {end: {symbol: getattr(axis, end) for symbol, axis in size.items()} for end in ("min", "opt", "max")}
    return {spec.name: Range(**{end: resolve(spec, sizes) for end, sizes in at.items()}) for spec in inputs}


def _check_axes(inputs: Sequence[TensorSpec], size: AxisRanges) -> None:
    symbols = {parse_rule(rule)[1] for spec in inputs for rule in spec.shape if isinstance(rule, str)}
    if missing := sorted(symbols - set(size)):
        raise EngineError(
            f"the axis {', '.join(missing)} of {', '.join(spec.name for spec in inputs)}",
            expected=f"an axis that the family plans: {', '.join(size)}",
            fix="Export the bundle again with this telecine, or upgrade it.",
        )
    for symbol in sorted(symbols):
        check_range(symbol, size[symbol])


def check_range(what: str, axis: AxisRange) -> None:
    """What TensorRT demands of each axis; `set_shape` itself accepts anything.

    Raises:
        EngineError: not 1 <= min <= opt <= max.

    Source: NVIDIA, IOptimizationProfile.set_shape, condition (2).
    """
    if not 1 <= axis.min <= axis.opt <= axis.max:
        raise EngineError(
            f"{what} from {axis.min} to {axis.max}, usually {axis.opt}",
            expected="1 <= min <= opt <= max",
            fix="Ask for other workloads.",
        )
