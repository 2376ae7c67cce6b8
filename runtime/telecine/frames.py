"""Videos that people pass, as arrays of frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.video import read_video


def load_frames(video: object) -> tuple[npt.NDArray[Any], float | None]:
    """(F, H, W, 3) frames, uint8 or float32 in [0, 1], and the frame rate where the video is a file.

    A video is a path, an array of such frames, or a list of images (arrays or PIL's).

    Raises:
        RequestError: none of these, another shape, or floats outside [0, 1].
        BackendError: a path, and PyAV is missing.
    """
    if isinstance(video, (str, os.PathLike)):
        return read_video(video)
    if isinstance(video, Sequence):
        video = [image.convert("RGB") if hasattr(image, "convert") else image for image in video]  # of PIL
    try:
        frames = np.asarray(video)
    except (TypeError, ValueError) as error:
        raise _no_video(f"no frames ({error})") from error
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise _no_video(f"an array of shape {frames.shape}")
    if frames.dtype == np.uint8:
        return frames, None
    if frames.dtype.kind != "f" or not (frames.min() >= 0 and frames.max() <= 1):  # `not`: NaN is neither
        raise _no_video(f"{frames.dtype} frames from {frames.min()} to {frames.max()}")
    return frames.astype(np.float32, copy=False), None


def _no_video(got: str) -> RequestError:
    return RequestError(
        f"the video is {got}",
        expected="(frames, height, width, 3): bytes, or floats from 0 to 1",
        fix="Pass a path, an array or a list of images of one size.",
    )
