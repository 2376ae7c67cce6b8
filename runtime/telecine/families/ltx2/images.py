"""Images and videos that a clip of LTX-2 is made from, as the VAE takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.condition import ImageInput
from telecine.errors import RequestError
from telecine.interpolate import bilinear
from telecine.media import load_image, to_pixels
from telecine.resample import BILINEAR
from telecine.video.recompress import recompress

Array = npt.NDArray[np.float32]
TRAINED_CRF = 33  # diffusers' DEFAULT_IMAGE_CRF, of models up to 2.3


def first_frame(image: ImageInput, height: int, width: int, crf: int | None) -> Array:
    """(1, 3, 1, height, width) in [-1, 1] of an image, compressed and then resized straight to this size.

    Raises:
        RequestError: no image, or one of floats, which a video codec does not take.
        BackendError: Pillow or PyAV is needed and missing.

    Source: diffusers `LTX2ImageToVideoPipeline.__call__`, which resizes PIL images by Pillow's bilinear filter.
    """
    return to_pixels([_compressed(load_image(image), crf)], height, width, BILINEAR)


def condition_video(frames: Sequence[npt.NDArray[Any]], height: int, width: int, crf: int | None) -> Array:
    """(1, 3, F, height, width) in [-1, 1] of F frames (h, w, 3), scaled to cover this size and cut to its centre.

    A single frame is compressed first.

    Raises:
        RequestError: a single frame of floats, which a video codec does not take.
        BackendError: PyAV is needed and missing.

    Source: diffusers `LTX2ConditionPipeline.preprocess_conditions`.
    """
    if len(frames) == 1:
        frames = [_compressed(frames[0], crf)]
    video = np.empty((1, 3, len(frames), height, width), np.float32)
    for index, frame in enumerate(frames):
        old_height, old_width = frame.shape[:2]
        scale = max(height / old_height, width / old_width)
        sides = math.ceil(old_height * scale), math.ceil(old_width * scale)
        values = frame.astype(np.float32)
        if frame.dtype != np.uint8:
            values *= np.float32(255)
        resized = bilinear(values[np.newaxis], *sides)[0]
        top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
        video[0, :, index] = resized[top : top + height, left : left + width].transpose(2, 0, 1)
    video /= np.float32(127.5)
    video -= np.float32(1)
    return video


def _compressed(frame: npt.NDArray[Any], crf: int | None) -> npt.NDArray[Any]:
    crf = TRAINED_CRF if crf is None else crf
    if crf == 0:
        return frame
    if frame.dtype != np.uint8:
        raise RequestError(
            f"an image of floats, to be compressed at crf {crf}",
            expected="bytes, which a video codec takes",
            fix="Pass a file, a PIL image or a uint8 array; or crf 0 (image_crf=0, or Condition(crf=0)).",
        )
    return recompress(frame, crf)
