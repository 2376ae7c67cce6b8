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
MAX_CRF = 51  # of H.264
# A path, a (frames, height, width, 3) array, or a list of images.
VideoInput: TypeAlias = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """An image or a video that the clip holds from frame `frame_index` on, with `strength` from 0 to 1.

    `image`: a path, a PIL image, or an array (height, width, 3), uint8 or floats in [0, 1]. `video`: a path, an array
    with a leading frame axis, or a list of images. Either is resized to the size of the clip.

    LTX-2 alone takes `index`, of a latent frame, in place of `frame_index`; below 0 it counts from the end. And `crf`:
    how an image is compressed first, as those were that the model learned from (0 is not at all; none is as trained).

    Raises:
        RequestError: not exactly one of `image` and `video`, or a value out of range.

    Source: diffusers `LTXVideoCondition` and `LTX2VideoCondition`.
    """

    image: ImageInput | None = None
    video: VideoInput | None = None
    frame_index: int = 0
    strength: float = 1.0
    index: int | None = None
    crf: int | None = None

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
        self._check_latent_index()
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

    def _check_latent_index(self) -> None:
        for name, value in (("index", self.index), ("crf", self.crf)):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if value is not None and not whole:
                raise RequestError(
                    f"a condition's {name} is {value!r}", expected="a whole number", fix="Leave it out for the usual."
                )
        if self.crf is not None and not 0 <= self.crf <= MAX_CRF:
            raise RequestError(
                f"a condition's crf is {self.crf}", expected=f"0 to {MAX_CRF}", fix="Use 0 to leave the image as it is."
            )
        if self.index is not None and self.frame_index != 0:
            raise RequestError(
                f"a condition with index={self.index} and frame_index={self.frame_index}",
                expected="one of the two",
                fix="index counts latent frames, frame_index those of the video: leave one out.",
            )


def is_list_of_images(value: ImageInput | Sequence[ImageInput]) -> bool:
    """Whether `image` holds one image a video, rather than one for all."""
    return isinstance(value, Sequence) and not isinstance(value, (str, os.PathLike))
