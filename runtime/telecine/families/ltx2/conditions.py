"""The conditions of a request, where each stands among the latents, and what it becomes there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.condition import Condition
from telecine.conditioning import usable_frames
from telecine.errors import RequestError
from telecine.families.ltx2.images import condition_video
from telecine.families.ltx2.positions import Keyframe
from telecine.media import load_image, load_video
from telecine.shapes import Grid, VideoShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A condition whose pixels (1, 3, 8k+1, height, width) are ready for the VAE.

    At latent `index` 0 it replaces the clip's first latents. Elsewhere it is a keyframe: latents of its own that stand
    behind the clip's.
    """

    pixels: Array
    index: int
    strength: float

    def keyframe(self, grid: Grid) -> Keyframe:
        """Where its latents stand in time, of an item that is not at 0."""
        assert self.index > 0
        frames = self.pixels.shape[2]
        return Keyframe(
            first_frame=_first_frame(self.index, grid),
            latent_frames=grid.latent_frames(frames),
            single=frames == 1,
        )


def items(conditions: Sequence[Condition], video: VideoShape, grid: Grid) -> list[Item]:
    """The conditions of a clip of this shape, in their order.

    Raises:
        RequestError: what is no Condition, one outside of the clip, or one that cannot be read.
        BackendError: Pillow or PyAV is needed and missing.

    Source: diffusers `LTX2ConditionPipeline.preprocess_conditions`, which skips those outside of the clip.
    """
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise RequestError(
                f"conditions hold {type(condition).__name__}",
                expected="telecine.Condition",
                fix="Pass conditions=[Condition(image=..., index=0, strength=1.0), ...].",
            )
    return [_item(condition, video, grid) for condition in conditions]


def latent_index(condition: Condition, latent_frames: int, grid: Grid) -> int:
    """Where among a clip's latent frames a condition stands: by its `index`, or by the frame that a latent begins with.

    Raises:
        RequestError: it stands outside of the clip, or inside of a latent.
    """
    index, frame = condition.index, condition.frame_index
    if index is None:
        index = 0 if frame == 0 else (frame - 1) // grid.temporal + 1
        if index and _first_frame(index, grid) != frame:
            raise RequestError(
                f"a condition at frame {frame}",
                expected=f"0, or one more than a multiple of {grid.temporal}: a latent begins only there",
                fix=f"Use frame_index={_first_frame(index, grid)}, or index={index}, which counts latents.",
            )
    if not -latent_frames <= index < latent_frames:
        raise RequestError(
            f"a condition at latent {index} of {latent_frames}",
            expected=f"an index from {-latent_frames} to {latent_frames - 1}",
            fix="Count from 0, or ask for more frames.",
        )
    return int(index % latent_frames)


def _item(condition: Condition, video: VideoShape, grid: Grid) -> Item:
    index = latent_index(condition, grid.latent_frames(video.num_frames), grid)
    frames = [load_image(condition.image)] if condition.image is not None else load_video(condition.video)[0]
    if condition.crf is not None and len(frames) > 1:
        raise RequestError(
            f"a video of {len(frames)} frames with crf={condition.crf}",
            expected="crf for an image alone: videos are not compressed again",
            fix="Leave crf out.",
        )
    start = _first_frame(index, grid)
    used = usable_frames(len(frames), frame_index=start, num_frames=video.num_frames, temporal_ratio=grid.temporal)
    if used < len(frames):
        logger.warning("the video at latent %d has %d frames: using the first %d", index, len(frames), used)
    return Item(
        # A video of which one frame is left is no image: it is not compressed.
        pixels=condition_video(frames[:used], video.height, video.width, condition.crf if len(frames) == 1 else 0),
        index=index,
        strength=float(condition.strength),
    )


def _first_frame(index: int, grid: Grid) -> int:
    """The frame that a latent begins with: 0, 1, 9, 17, ..."""
    return max((index - 1) * grid.temporal + 1, 0)
