"""What a video is conditioned on: an image or a video, where it stands, and how firmly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from telecine.errors import RequestError

# A path, a PIL image, or a (height, width, 3) array of bytes or of floats in [0, 1].
ImageInput: TypeAlias = Any
# A path, a (frames, height, width, 3) array, or a list of images.
VideoInput: TypeAlias = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """An image or a video that the clip holds from frame `frame_index` on, with `strength` from 0 to 1.

    `image`: a path, a PIL image, or an array (height, width, 3), uint8 or floats in [0, 1]. `video`: a path, an array
    with a leading frame axis, or a list of images. Either is resized to the size of the clip.

    Raises:
        RequestError: not exactly one of `image` and `video`, or a value out of range.

    Source: diffusers `LTXVideoCondition`.
    """

    image: ImageInput | None = None
    video: VideoInput | None = None
    frame_index: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if (self.image is None) == (self.video is None):
            raise RequestError(
                f"a condition with {'neither an image nor a video' if self.image is None else 'an image and a video'}",
                expected="one of the two",
                fix="Pass image=... or video=..., and one Condition for each.",
            )
        index = self.frame_index
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or index < 0:
            raise RequestError(
                f"a condition's frame_index is {index!r}",
                expected="a whole number, 0 or more",
                fix="Count frames from the start of the clip: the first is 0.",
            )
        strength = self.strength
        if (
            isinstance(strength, bool)
            or not isinstance(strength, (int, float, np.integer, np.floating))
            or not 0 <= strength <= 1
        ):
            raise RequestError(
                f"a condition's strength is {strength!r}",
                expected="a number from 0 to 1",
                fix="Use 1 to keep the frames as they are.",
            )


def is_list_of_images(value: ImageInput | Sequence[ImageInput]) -> bool:
    """Whether `image` holds one image a video, rather than one for all."""
    return isinstance(value, Sequence) and not isinstance(value, (str, os.PathLike))
