"""Between the VAE's videos and frames that people look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.overridable import overridable


@overridable
def to_unit_range(video: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Turn a (B, 3, F, H, W) video in [-1, 1] into (B, F, H, W, 3) frames in [0, 1], float32, clipped.

    Source: diffusers `VideoProcessor.postprocess_video(output_type="np")` of a float32 video, bit for bit.
    """
    batch, channels, frames, height, width = video.shape
    out = np.empty((batch, frames, height, width, channels), np.float32)
    plane = np.empty((height, width), np.float32)
    # A plane at a time stays in cache, and only the last pass writes with a stride.
    for b, c, f in np.ndindex(batch, channels, frames):
        np.multiply(video[b, c, f], np.float32(0.5), out=plane)
        np.add(plane, np.float32(0.5), out=plane)
        np.clip(plane, 0, 1, out=out[b, f, :, :, c])
    return out


@overridable
def to_uint8(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Quantise (B, F, H, W, 3) frames in [0, 1] to bytes: x * 255, rounded half to even.

    Source: diffusers `VaeImageProcessor.numpy_to_pil`.
    """
    out = np.empty(frames.shape, np.uint8)
    scaled = np.empty(frames.shape[2:], np.float32)
    for position in np.ndindex(frames.shape[:2]):
        np.multiply(frames[position], np.float32(255), out=scaled)
        np.rint(scaled, out=scaled)
        out[position] = scaled
    return out


def to_signed_range(frames: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Turn (F, H, W, 3) frames, bytes or floats in [0, 1], into a (1, 3, F, H, W) video in [-1, 1], float32.

    Source: diffusers `VideoProcessor.preprocess_video` of PIL images, after resizing.
    """
    video = frames.transpose(3, 0, 1, 2)[np.newaxis].astype(np.float32, order="C")
    if frames.dtype == np.uint8:
        video /= np.float32(255)
    video *= np.float32(2)
    video -= np.float32(1)
    return video
