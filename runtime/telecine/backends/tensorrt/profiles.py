"""Which optimisation profile of a plan takes which sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from telecine.axes import Shape, bind_axes
from telecine.engine import Range, Sidecar
from telecine.errors import EngineError
from telecine.manifest import TensorSpec

Profile = Mapping[str, Range]


def choose_profile(profiles: Sequence[Profile], inputs: Mapping[str, TensorSpec], shapes: Mapping[str, Shape]) -> int:
    """The index of the profile for input shapes by name: of those that cover them the one tuned nearest to them.

    A profile names the inputs that have dynamic axes; nearest is by the ratios between the sizes and its `opt`.

    Raises:
        EngineError: none covers the shapes; it names the first axis that is outside of all, or else of one.
    """
    covering = [index for index, profile in enumerate(profiles) if not _outside(profile, shapes)]
    if not covering:
        raise _not_covered(profiles, inputs, shapes)
    return min(covering, key=lambda index: _distance(profiles[index], shapes))


def largest_sizes(sidecar: Sidecar) -> dict[str, int]:
    """The largest size of each axis by symbol, in the profile that takes the most."""
    profile = max(sidecar.profiles, key=lambda each: sum(math.prod(limits.max) for limits in each.values()))
    ranged = [spec for spec in sidecar.inputs if spec.name in profile]
    return bind_axes(ranged, {spec.name: profile[spec.name].max for spec in ranged})


def _outside(profile: Profile, shapes: Mapping[str, Shape]) -> list[tuple[str, int]]:
    """(input, axis) of every size outside of its range."""
    return [
        (name, axis)
        for name, limits in profile.items()
        for axis, size in enumerate(shapes[name])
        if not limits.min[axis] <= size <= limits.max[axis]
    ]


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    return sum(
        abs(math.log(size / best))
        for name, limits in profile.items()
        for size, best in zip(shapes[name], limits.opt, strict=True)
    )


def _not_covered(
    profiles: Sequence[Profile], inputs: Mapping[str, TensorSpec], shapes: Mapping[str, Shape]
) -> EngineError:
    misses = [_outside(profile, shapes) for profile in profiles]
    everywhere = [place for place in misses[0] if all(place in miss for miss in misses)]
    name, axis = (everywhere or misses[0])[0]
    ranges = sorted({(profile[name].min[axis], profile[name].max[axis]) for profile in profiles if name in profile})
    covered = " or ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in ranges)
    rule = inputs[name].shape[axis]
    return EngineError(
        f"{rule} of {name} is {shapes[name][axis]}, for which the engine has no profile",
        expected=covered if everywhere else f"{covered}, together with the other sizes {dict(shapes)}",
        fix="Run: telecine build BUNDLE --workload WIDTHxHEIGHTxFRAMES@bBATCH with the size of this request "
        "(beside the workloads that are there), or use backend='onnxruntime'.",
    )
