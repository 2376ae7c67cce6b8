"""Frames that leave a GPU as bytes: a quarter of what the decoder made, and nothing for the host to round.

Only what is decoded whole goes this way: where tiles are blended, the host does it, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session

VIDEO = "video"  # the decoders' output


class Helpers(Protocol):
    """As `telecine.families.base.Models` has them."""

    def helper(self, component: str) -> Session | None: ...


def uint8_session(models: Helpers, decoder: Session) -> Session | None:
    """The graph that takes the decoder's output where it lies; None where NumPy makes the bytes."""
    session = models.helper("uint8_frames") if decoder.workspace is not None else None
    return session if session is not None and session.workspace is not None else None


def decode_to_uint8(
    decoder: Session, to_uint8: Session, feeds: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """What `decoder.run` gives, with (B, F, H, W, 3) bytes for `video`, which stays on the device itself.

    Raises:
        BackendError: see `Session.run`.
    """
    workspace = decoder.workspace
    assert workspace is not None
    given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    shapes = decoder.output_shapes({name: array.shape for name, array in given.items()})
    video = workspace.array(VIDEO, shapes[VIDEO], decoder.outputs[VIDEO].dtype)
    frames = np.empty(to_uint8.output_shapes({VIDEO: video.shape})["frames"], np.uint8)
    made = {name: np.empty(shape, decoder.outputs[name].dtype) for name, shape in shapes.items() if name != VIDEO}
    try:
        for name, array in (given | made | {VIDEO: video}).items():
            decoder.bind(name, array)
        decoder.enqueue(workspace.stream)
        to_uint8.bind(VIDEO, video)
        to_uint8.bind("frames", frames)
        to_uint8.enqueue(workspace.stream)
    finally:
        decoder.unbind()
        to_uint8.unbind()
    return {**made, VIDEO: frames}
