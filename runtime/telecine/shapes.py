"""Sizes of videos and of their latents: the one place that knows the grid's rules."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from telecine.errors import BundleError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Pixels a latent spans on a side (`spatial`, 32 for LTX) and frames it spans (`temporal`, 8).

    Raises:
        BundleError: a ratio is not a positive whole number.

    Source: `LTXPipeline.vae_spatial_compression_ratio` and `vae_temporal_compression_ratio`.
    """

    spatial: int
    temporal: int

    def __post_init__(self) -> None:
        for name in ("spatial", "temporal"):
            ratio = getattr(self, name)
            if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
                raise BundleError(
                    f"the {name} compression ratio is {ratio!r}",
                    expected="a positive whole number",
                    fix="Export the bundle again.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoShape:
    """(num_frames, height, width) of a video, in frames and pixels, on a grid of latents."""

    num_frames: int
    height: int
    width: int

    @classmethod
    def from_request(cls, *, num_frames: int, height: int, width: int, grid: Grid) -> VideoShape:
        """(num_frames, height, width) that a request gets: the sides as asked, the frames rounded down.

        The first latent holds one frame and each later one `grid.temporal`, so `num_frames` becomes the
        largest `temporal * k + 1` that is not above it, as in diffusers; callers compare and warn.

        Raises:
            RequestError: a value is not a whole number, a side is not a positive multiple of
                `grid.spatial`, or there is no frame.

        Source: diffusers `LTXPipeline.check_inputs`, `LTXPipeline.prepare_latents`.
        """
        frames = _whole("num_frames", num_frames)
        if frames < 1:
            raise RequestError(f"num_frames is {frames}", expected="at least 1", fix="Use 1 for an image.")
        return cls(
            num_frames=(frames - 1) // grid.temporal * grid.temporal + 1,
            height=_side("height", height, grid),
            width=_side("width", width, grid),
        )

    @classmethod
    def below(cls, *, num_frames: int, height: int, width: int, grid: Grid) -> VideoShape:
        """The largest (num_frames, height, width) on the grid that is nowhere above these, one latent at least."""
        latent = LatentShape(
            frames=(max(num_frames, 1) - 1) // grid.temporal + 1,
            height=max(height // grid.spatial, 1),
            width=max(width // grid.spatial, 1),
        )
        return latent.video(grid)

    def latent(self, grid: Grid) -> LatentShape:
        """(frames, height, width) of the latents that hold this video."""
        assert (self.num_frames - 1) % grid.temporal == 0, self
        assert self.height % grid.spatial == self.width % grid.spatial == 0, self
        return LatentShape(
            frames=(self.num_frames - 1) // grid.temporal + 1,
            height=self.height // grid.spatial,
            width=self.width // grid.spatial,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """(frames, height, width) of latents: F, H and W of (B, C, F, H, W)."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """T of (B, T, C): one token a latent, since every LTX transformer has patch size 1."""
        return self.frames * self.height * self.width

    def video(self, grid: Grid) -> VideoShape:
        """(num_frames, height, width) of the video that these latents decode to."""
        return VideoShape(
            num_frames=(self.frames - 1) * grid.temporal + 1,
            height=self.height * grid.spatial,
            width=self.width * grid.spatial,
        )

    def array_shape(self, batch: int, channels: int) -> tuple[int, int, int, int, int]:
        """(B, C, F, H, W) of an array of these latents."""
        return batch, channels, self.frames, self.height, self.width


def _whole(name: str, value: object) -> int:
    try:
        # A bool has __index__ too, but height=True is a mistake, not a size.
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise RequestError(f"{name} is {value!r}", expected="a whole number", fix=f"Pass {name} as an int.")


def _side(name: str, value: object, grid: Grid) -> int:
    side = _whole(name, value)
    if side > 0 and side % grid.spatial == 0:
        return side
    below = max(side // grid.spatial, 1) * grid.spatial
    raise RequestError(
        f"{name} is {side}",
        expected=f"a positive multiple of {grid.spatial}",
        fix=f"Use {below} or {below + grid.spatial}.",
    )
