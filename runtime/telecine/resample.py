"""Resize frames as Pillow's `Image.resize` does, to the last bit of a byte, without Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PRECISION_BITS = 22  # of the fixed point that Pillow resizes bytes in: 32 bits less 8 of the pixel and 2 to spare


class Kernel(NamedTuple):
    """A filter of so many pixels to either side."""

    support: float
    weights: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _bilinear(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0))


def _lanczos(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


BILINEAR = Kernel(1.0, _bilinear)  # what diffusers' image processor is told by LTX-2's image-to-video pipeline
BICUBIC = Kernel(2.0, _bicubic)  # what Image.resize takes if not told
LANCZOS = Kernel(3.0, _lanczos)  # what diffusers' image processor takes


def resize(frames: npt.NDArray[Any], height: int, width: int, kernel: Kernel) -> npt.NDArray[Any]:
    """(F, H, W, C) frames → (F, height, width, C); uint8 as Pillow's RGB images, float32 as its images of mode F.

    Source: Pillow 13 `ImagingResampleInner` (Resample.c): two passes, the first rounded to the frames' type. Releases
    before it always take the columns first.
    """
    old_height, old_width = frames.shape[1:3]
    passes = [(_taps(old_width, width, kernel), 1), (_taps(old_height, height, kernel), 0)]
    if old_height - height > max(2 * (old_width - width), 0):
        passes.reverse()
    out = np.empty((len(frames), height, width, frames.shape[3]), frames.dtype)
    for index, frame in enumerate(frames):
        for taps, axis in passes:
            frame = _along(frame, taps, axis) if taps else frame
        out[index] = frame
    return out


class _Taps(NamedTuple):
    """(N, K) indices into an axis and (N, K) weights, for each of N new pixels."""

    indices: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float64]


def _taps(size: int, new_size: int, kernel: Kernel) -> _Taps | None:
    """Which pixels of an axis of `size` make each of `new_size`; None where it stays as it is."""
    if new_size == size:
        return None
    scale = size / new_size
    stretch = max(scale, 1.0)  # shrinking widens the filter; enlarging does not narrow it
    support = kernel.support * stretch
    centers = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.intp), 0)
    last = np.minimum((centers + support + 0.5).astype(np.intp), size)
    index = first[:, None] + np.arange(math.ceil(support) * 2 + 1)
    weight = kernel.weights((index - centers[:, None] + 0.5) / stretch)
    weight = np.where(index < last[:, None], weight, 0)
    weight /= weight.sum(axis=1, keepdims=True)
    used = np.flatnonzero(weight.any(axis=0))[-1] + 1
    return _Taps(np.minimum(index, size - 1)[:, :used], weight[:, :used])


def _along(frame: npt.NDArray[Any], taps: _Taps, axis: int) -> npt.NDArray[Any]:
    """One pass over an axis of an (H, W, C) frame."""
    is_bytes = frame.dtype == np.uint8
    weight: npt.NDArray[Any] = taps.weights.astype(np.float32)
    if is_bytes:  # rounded half away from zero
        scaled = taps.weights * 2**PRECISION_BITS
        weight = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    total: Any = 1 << (PRECISION_BITS - 1) if is_bytes else np.float32(0)
    for index, column in zip(taps.indices.T, weight.T, strict=True):
        total = total + np.take(frame, index, axis=axis) * column.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8) if is_bytes else total
