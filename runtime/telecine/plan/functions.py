"""NumPy's functions, and our own, as a program's steps: what they do to arrays that are only recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.families.ltx_video.text import without_padding
from telecine.guidance import deviation
from telecine.pixels import to_uint8, to_unit_range
from telecine.plan.recorded import Recorded, refuse
from telecine.plan.recorder import Recorder


def _concatenate(recorder: Recorder, arrays: Sequence[Any], axis: int = 0) -> Recorded:
    kinds = np.result_type(*(array.dtype for array in arrays))
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    out = recorder.empty(tuple(shape), kinds)
    places, start = out.moved(axis, 0), 0
    for array in arrays:
        part = places[start : start + array.shape[axis]]
        recorder.compute("copy", part, np.moveaxis(array, axis, 0))
        start += len(part)
    return out


def _repeat(recorder: Recorder, array: Recorded, repeats: int, axis: int) -> Recorded:
    if repeats == 1:
        return array.copy()
    shape = list(array.shape)
    shape.insert(axis + 1, repeats)
    spread = array.reshape([*array.shape[: axis + 1], 1, *array.shape[axis + 1 :]]).broadcast(tuple(shape))
    return recorder.compute("copy", recorder.empty(tuple(shape), array.dtype), spread).reshape(
        [size * (repeats if each == axis else 1) for each, size in enumerate(array.shape)]
    )


def _split(recorder: Recorder, array: Recorded, indices_or_sections: int | Sequence[int], axis: int = 0) -> Any:
    moved = array.moved(axis, 0)
    length = len(moved)
    if isinstance(indices_or_sections, int):
        size = length // indices_or_sections
        indices_or_sections = range(size, length, size)
    ends = [0, *indices_or_sections, length]
    return [moved[start:stop].moved(0, axis) for start, stop in pairwise(ends)]


def _where(recorder: Recorder, condition: npt.NDArray[np.bool_], chosen: Any, other: Any) -> Recorded:
    """The condition must be known and vary along one axis: each stretch of it is copied from one of the two."""
    if isinstance(condition, Recorded) or sum(size > 1 for size in condition.shape) > 1:
        refuse("a choice between values, element by element,")
    shape = np.broadcast_shapes(condition.shape, chosen.shape, other.shape)
    chosen = chosen.broadcast(shape) if isinstance(chosen, Recorded) else np.broadcast_to(chosen, shape)
    out = recorder.empty(shape, np.result_type(chosen.dtype, other.dtype))
    recorder.compute("copy", out, other)
    if condition.size == 1:
        return recorder.compute("copy", out, chosen) if condition.all() else out
    axis = int(np.argmax(condition.shape)) - condition.ndim
    places, values = out.moved(axis, 0), np.moveaxis(chosen, axis, 0)
    for value, stretch in groupby(range(condition.size), key=lambda index: bool(condition.reshape(-1)[index])):
        indexes = list(stretch)
        if value:
            part = slice(indexes[0], indexes[-1] + 1)
            recorder.compute("copy", places[part], values[part])
    return out


def _pad(recorder: Recorder, array: Recorded, widths: Sequence[tuple[int, int]]) -> Recorded:
    shape = tuple(size + before + after for size, (before, after) in zip(array.shape, widths, strict=True))
    out = recorder.compute("copy", recorder.empty(shape, array.dtype), 0)
    out[tuple(slice(before, before + size) for size, (before, _) in zip(array.shape, widths, strict=True))] = array
    return out


def _clip(recorder: Recorder, array: Recorded, low: float, high: float) -> Recorded:
    out = recorder.compute("maximum", recorder.empty(array.shape, array.dtype), array, low)
    return recorder.compute("minimum", out, out, high)


def _zeros_like(recorder: Recorder, array: Recorded, shape: tuple[int, ...]) -> Recorded:
    return recorder.compute("copy", recorder.empty(shape, array.dtype), 0)


def _deviation(recorder: Recorder, values: Recorded) -> Recorded:
    return recorder.reduce("std", recorder.empty(values.shape[:1], np.float64), values.reshape(len(values), -1))


def _einsum(recorder: Recorder, subscripts: str, one: Recorded, other: Recorded, dtype: npt.DTypeLike) -> Recorded:
    if subscripts != "bn,bn->b":
        refuse(f"numpy.einsum of {subscripts}")
    return recorder.reduce("dot", recorder.empty(one.shape[:1], dtype), one, other)


def _moveaxis(recorder: Recorder, array: Recorded, source: int, destination: int) -> Recorded:
    return array.moved(source, destination)


def _to_unit_range(recorder: Recorder, video: Recorded) -> Recorded:
    batch, channels, frames, height, width = video.shape
    out = recorder.empty((batch, frames, height, width, channels), np.float32)
    planes = out.transpose(0, 4, 1, 2, 3)
    recorder.compute("multiply", planes, video, 0.5)
    recorder.compute("add", out, out, 0.5)
    recorder.compute("maximum", out, out, 0)
    return recorder.compute("minimum", out, out, 1)


def _to_uint8(recorder: Recorder, frames: Recorded) -> Recorded:
    scaled = recorder.compute("multiply", recorder.empty(frames.shape, np.float32), frames, 255)
    recorder.compute("rint", scaled, scaled)
    return scaled.astype(np.uint8)


def _without_padding(recorder: Recorder, embeds: Recorded, mask: Any) -> Any:
    """Where the mask is not known yet, all columns stay: those of padding weigh nothing."""
    if isinstance(mask, Recorded):
        return embeds, mask
    return without_padding.__wrapped__(embeds, mask)  # type: ignore[attr-defined]


# Each takes the recorder, then what the function takes.
FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    np.concatenate: _concatenate,
    np.repeat: _repeat,
    np.split: _split,
    np.where: _where,
    np.pad: _pad,
    np.clip: _clip,
    np.zeros_like: _zeros_like,
    np.einsum: _einsum,
    np.moveaxis: _moveaxis,
    to_unit_range: _to_unit_range,
    deviation: _deviation,
    to_uint8: _to_uint8,
    without_padding: _without_padding,
}
