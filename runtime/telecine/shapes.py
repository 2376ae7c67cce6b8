"""Sizes of videos and of their latents: the one place that knows the grid's rules."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from telecine.errors import BundleError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Pixels a latent spans on a side (`spatial`, 32 for LTX) and frames it spans (`temporal`, 8).

    A token is of `patch` latents on a side and `patch_t` latent frames. A VAE that is `chunked` decodes two latents at
    a time: the first of an even number of them stands for as many frames as the others, and not for one.

    Raises:
        BundleError: a ratio is not a positive whole number.

    Source: `LTXPipeline.vae_spatial_compression_ratio` and `vae_temporal_compression_ratio`; CogVideoX' `patch_size`,
    `patch_size_t` and `AutoencoderKLCogVideoX._decode`.
    """

    spatial: int
    temporal: int
    patch: int = 1
    patch_t: int = 1
    chunked: bool = False

    def __post_init__(self) -> None:
        for name in ("spatial", "temporal", "patch", "patch_t"):
            ratio = getattr(self, name)
            if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
                raise BundleError(
                    f"the {name} compression ratio is {ratio!r}",
                    expected="a positive whole number",
                    fix="Export the bundle again.",
                )

    @property
    def side(self) -> int:
        """Pixels that a token spans on a side: what heights and widths are multiples of."""
        return self.spatial * self.patch

    def num_frames(self, latent_frames: int) -> int:
        """Frames of the video that so many latent frames decode to."""
        whole = self.chunked and latent_frames % 2 == 0
        return self.temporal * latent_frames if whole else self.temporal * (latent_frames - 1) + 1

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a video, whose first latent may stand for a single frame."""
        return (num_frames - 1) // self.temporal + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoShape:
    """(num_frames, height, width) of a video, in frames and pixels, on a grid of latents."""

    num_frames: int
    height: int
    width: int

    @classmethod
    def from_request(cls, *, num_frames: int, height: int, width: int, grid: Grid) -> VideoShape:
        """(num_frames, height, width) that a request gets: the sides as asked, the frames as their latents decode.

        The first latent holds one frame and each later one `grid.temporal`, so `num_frames` becomes the
        largest `temporal * k + 1` that is not above it, as in diffusers; callers compare and warn. On a chunked
        grid an even number of latents gives more frames than were asked for.

        Raises:
            RequestError: a value is not a whole number, a side is not a positive multiple of
                `grid.side`, or there is no frame.

        Source: diffusers `LTXPipeline.check_inputs`, `LTXPipeline.prepare_latents`.
        """
        frames = _whole("num_frames", num_frames)
        if frames < 1:
            raise RequestError(f"num_frames is {frames}", expected="at least 1", fix="Use 1 for an image.")
        return cls(
            num_frames=grid.num_frames(grid.latent_frames(frames)),
            height=_side("height", height, grid),
            width=_side("width", width, grid),
        )

    @classmethod
    def below(cls, *, num_frames: int, height: int, width: int, grid: Grid) -> VideoShape:
        """The largest (num_frames, height, width) on the grid that is nowhere above these, one token at least."""
        frames = grid.latent_frames(max(num_frames, 1))
        if grid.num_frames(frames) > num_frames and frames > 1:  # an even number of latents of a chunked VAE
            frames -= 1
        return cls(
            num_frames=grid.num_frames(frames),
            height=max(height // grid.side, 1) * grid.side,
            width=max(width // grid.side, 1) * grid.side,
        )

    def latent(self, grid: Grid) -> LatentShape:
        """(frames, height, width) of the latents that hold this video."""
        frames = grid.latent_frames(self.num_frames)
        assert grid.num_frames(frames) == self.num_frames, self
        assert self.height % grid.spatial == self.width % grid.spatial == 0, self
        return LatentShape(
            frames=frames,
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
            num_frames=grid.num_frames(self.frames),
            height=self.height * grid.spatial,
            width=self.width * grid.spatial,
        )

    def padded(self, grid: Grid) -> LatentShape:
        """With as many frames more as make whole tokens."""
        return replace(self, frames=-(-self.frames // grid.patch_t) * grid.patch_t)

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
    if side > 0 and side % grid.side == 0:
        return side
    below = max(side // grid.side, 1) * grid.side
    raise RequestError(
        f"{name} is {side}",
        expected=f"a positive multiple of {grid.side}",
        fix=f"Use {below} or {below + grid.side}.",
    )
