"""`--image FILE[@FRAME[:STRENGTH]]` and `--video ...`: conditions from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from telecine import Condition

# A file's name may hold @ and : itself: only a number at the end is a frame.
PLACE = re.compile(r"(?P<file>.+)@(?P<frame>\d+)(?::(?P<strength>\d*\.?\d+))?")


def conditions(images: Sequence[str], videos: Sequence[str]) -> dict[str, Any]:
    """`image`, `video` or `conditions` of `generate`, as the options say.

    Images without a frame, and nothing else, are `image`: one for all videos, or one a video. A single video without a
    frame, and nothing else, is `video`. With anything else they are conditions at frame 0.

    Raises:
        RequestError: a strength above 1.
    """
    if images and not videos and not any(PLACE.fullmatch(image) for image in images):
        return {"image": images[0] if len(images) == 1 else list(images)}
    if len(videos) == 1 and not images and not PLACE.fullmatch(videos[0]):
        return {"video": videos[0]}
    made = [_condition("image", image) for image in images] + [_condition("video", video) for video in videos]
    return {"conditions": made} if made else {}


def _condition(kind: str, value: str) -> Condition:
    from telecine import Condition

    fields: dict[str, Any] = {kind: value}
    if placed := PLACE.fullmatch(value):
        fields = {kind: placed["file"], "frame_index": int(placed["frame"]), "strength": float(placed["strength"] or 1)}
    return Condition(**fields)
