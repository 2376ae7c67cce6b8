"""Sizes that engines are built for, and what a family makes of them: a range for every axis of its graphs."""

from __future__ import annotations

from dataclasses import dataclass

from telecine.shapes import VideoShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Videos from `low` to `high` (one size where they are equal), as many at a time as `videos` says, both ends in.

    `tile` is the largest video that the VAE is run on at once: larger ones are decoded in tiles. `keyframes` is how
    many latent frames conditions may add to the clip's own: one an image at a later frame than the first, two a video.
    """

    low: VideoShape
    high: VideoShape
    videos: tuple[int, int]
    tile: VideoShape
    keyframes: int

    def __str__(self) -> str:
        low, high = (f"{shape.width}x{shape.height}x{shape.num_frames}" for shape in (self.low, self.high))
        fewest, most = self.videos
        sizes = low if low == high else f"{low}..{high}"
        return f"{sizes}@b{most}" if fewest == most else f"{sizes}@b{fewest}..{most}"


@dataclass(frozen=True, slots=True)
class AxisRange:
    """Sizes of one axis: from `min` to `max`, most often `opt`."""

    min: int
    opt: int
    max: int

    def __or__(self, other: AxisRange) -> AxisRange:
        """What holds both; the usual size is this one's."""
        return AxisRange(min(self.min, other.min), self.opt, max(self.max, other.max))


# The axes of one graph by symbol, at one size of a workload.
AxisRanges = dict[str, AxisRange]
