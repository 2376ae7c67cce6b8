"""Resize frames as torch's `interpolate(mode="bilinear")` does, which looks at two pixels whatever the factor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def bilinear(frames: Array, height: int, width: int) -> Array:
    """(F, h, w, C) frames → (F, height, width, C), float32: no filter before shrinking, corners not aligned.

    Source: torch `upsample_bilinear2d` (ATen/native/cpu/UpSampleKernel.cpp).
    """
    for axis, size in ((2, width), (1, height)):
        first, second, share = _neighbours(frames.shape[axis], size)
        share = share.reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        near = np.take(frames, first, axis=axis) * (np.float32(1) - share)
        frames = near + np.take(frames, second, axis=axis) * share
    return frames


def _neighbours(size: int, new_size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """(N,) indices of the two pixels between which each of N new ones stands, and (N,) its share of the second.

    torch's product and difference are one fused operation: in float64 the product is exact, and is rounded once.
    """
    scale = np.float32(size) / np.float32(new_size)
    places = np.maximum((np.arange(new_size) + 0.5) * np.float64(scale) - 0.5, 0).astype(np.float32)
    first = np.minimum(places.astype(np.intp), size - 1)
    return first, np.minimum(first + 1, size - 1), places - first.astype(np.float32)
