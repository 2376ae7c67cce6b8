"""`--image FILE[@FRAME[:STRENGTH]]` and `--video ...`: conditions from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# A file's name may hold @ and : itself: only a number at the end is a frame.
PLACE = re.compile(r"(?P<file>.+)@(?P<frame>\d+)(?::(?P<strength>\d*\.?\d+))?")


def conditions(images: Sequence[str], videos: Sequence[str]) -> dict[str, Any]:
    """`image` or `conditions` of `generate`, as the options say.

    Images without a frame, and nothing else, are `image`: one for all videos, or one a video. With anything else they
    are conditions at frame 0.

    Raises:
        RequestError: a strength above 1.
    """
    from telecine import Condition

    if images and not videos and not any(PLACE.fullmatch(image) for image in images):
        return {"image": images[0] if len(images) == 1 else list(images)}
    made = []
    for kind, values in (("image", images), ("video", videos)):
        for value in values:
            placed = PLACE.fullmatch(value)
            where = {"frame_index": int(placed["frame"]), "strength": float(placed["strength"] or 1)} if placed else {}
            made.append(Condition(**{kind: placed["file"] if placed else value}, **where))
    return {"conditions": made} if made else {}
