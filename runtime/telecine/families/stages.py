"""What runs of two stages share: the sizes of both, names of what is timed, and the resize at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.checks import check, is_whole
from telecine.families.base import Frames, Stage
from telecine.request import Request
from telecine.resample import BICUBIC, resize
from telecine.shapes import Grid, VideoShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The videos of the two stages; what was asked for is the second one, resized."""

    first: VideoShape
    second: VideoShape

    @classmethod
    def plan(cls, request: Request | VideoShape, downscale_factor: float, grid: Grid) -> Sizes:
        """The first stage is the size asked for times the factor, to the nearest of the grid; the second is twice that.

        diffusers' documentation rounds to the temporal ratio, which gives sizes that its pipeline refuses.

        Raises:
            RequestError: a side is no positive whole number, or there is no frame.
        """
        for name in ("height", "width"):
            side = getattr(request, name)
            right = is_whole(side) and side > 0
            check(right, f"{name} is {side!r}", "a positive whole number", f"Pass {name} in pixels.")
        height, width = (
            max(round(side * downscale_factor / grid.spatial), 1) * grid.spatial
            for side in (request.height, request.width)
        )
        first = VideoShape.from_request(num_frames=request.num_frames, height=height, width=width, grid=grid)
        return cls(first=first, second=dataclasses.replace(first, height=2 * height, width=2 * width))


def named(prefix: str, stage: Stage) -> Stage:
    """`stage`, with what it times told apart from the other run's."""

    def prefixed(name: str) -> AbstractContextManager[None]:
        return stage(f"{prefix} {name}")

    return prefixed


def resized(frames: Frames, height: int, width: int) -> Frames:
    """(B, F, h, w, 3) frames at the size asked for, as Pillow resizes images by default; a piece at a time."""
    if frames.shape[2:4] == (height, width):
        return frames

    def pieces() -> Iterator[npt.NDArray[Any]]:
        for piece in frames.pieces:
            resized = _resize(piece, height, width)
            del piece
            yield resized
            del resized  # neither lives on while the next tile is decoded

    shape = (*frames.shape[:2], height, width, frames.shape[4])
    return dataclasses.replace(frames, shape=shape, pieces=pieces())


def _resize(piece: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    resized = np.stack([resize(video, height, width, BICUBIC) for video in piece])
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1, out=resized)  # the filter overshoots
