"""From latents to frames by a decoder that is one graph, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Frames, Models
from telecine.families.uint8_frames import decode_to_uint8, uint8_session
from telecine.pixels import to_uint8, to_unit_range
from telecine.request import Request
from telecine.shapes import Grid, LatentShape
from telecine.tiling import Extent, Largest, Network, Plan, Tile
from telecine.upscale_request import UpscaleRequest

Array = npt.NDArray[np.float32]
# A tile → inputs of the decoder that are for its part of the picture.
Maps = Callable[[Tile], dict[str, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeSettings:
    """(B,) `timestep` and (B,) `noise_scale` of a decoder with timestep conditioning; the tiles; the frames' type."""

    timestep: Array
    noise_scale: Array
    plan: Plan
    output_type: str

    @classmethod
    def of(cls, request: Request | UpscaleRequest, plan: Plan) -> DecodeSettings:
        """Settings for a request whose tiles are planned. The scale is the timestep where none is given.

        Raises:
            RequestError: not finite numbers, or another count than of videos.
        """
        timestep = scale = request.per_video("decode_timestep", request.decode_timestep)
        if request.decode_noise_scale is not None:
            scale = request.per_video("decode_noise_scale", request.decode_noise_scale)
        return cls(timestep, scale, plan, request.output_type)


def largest_tile(models: Models, component: str) -> Largest | None:
    """What a half of the VAE takes at once, where the backend has a limit.

    Raises:
        EngineError: as `Models.limits`.
    """
    limits = models.limits(component)
    if limits is None:
        return None
    return Largest((limits["latent_frames"], limits["latent_height"], limits["latent_width"]), limits["batch"])


def decoded(
    models: Models,
    grid: Grid,
    latents: Array,
    feeds: Mapping[str, Array],
    settings: DecodeSettings,
    maps: Callable[[], Maps] = lambda: lambda tile: {},
) -> Frames:
    """(B, C, F, H, W) latents as the decoder takes them → (B, num_frames, height, width, 3) frames, float32 or uint8.

    The frames are made when they are asked for. `feeds` are the decoder's other inputs, (B, ...) each; `maps` is asked
    when the decoding begins for those that are not of one video.
    """
    shape = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4])
    video = shape.video(grid)

    def pieces() -> Iterator[npt.NDArray[Any]]:
        of = maps()
        session = models.session("vae_decoder")
        if settings.output_type == "uint8" and settings.plan.whole:
            uint8 = uint8_session(models, session)
            if uint8 is not None:
                whole = Tile(*(Extent(0, side) for side in latents.shape[2:]))
                yield _whole_videos(session, uint8, latents, feeds, of(whole), settings.plan.videos)
                return
        network = _network(session, feeds, of, settings.plan.videos)
        for made in settings.plan.run(network, latents):
            frames: npt.NDArray[Any] = to_unit_range(made)
            if settings.output_type == "uint8":
                frames = to_uint8(frames)
            del made
            yield frames
            del frames  # neither lives on while the next tile is decoded

    return Frames(
        shape=(len(latents), video.num_frames, video.height, video.width, 3),
        dtype=np.dtype(np.uint8 if settings.output_type == "uint8" else np.float32),
        pieces=pieces(),
    )


def _whole_videos(
    session: Session, uint8: Session, latents: Array, feeds: Mapping[str, Array], maps: dict[str, Array], at_once: int
) -> npt.NDArray[np.uint8]:
    """(B, num_frames, height, width, 3) bytes, made where the decoder runs; `at_once` of the videos a call."""
    videos = [
        decode_to_uint8(session, uint8, {**_some(latents, feeds, slice(first, first + at_once)), **maps})["video"]
        for first in range(0, len(latents), at_once)
    ]
    return videos[0] if len(videos) == 1 else np.concatenate(videos)


def _some(latents: Array, feeds: Mapping[str, Array], videos: slice) -> dict[str, Array]:
    """What the decoder takes of some of the videos."""
    return {"latents": latents[videos], **{name: values[videos] for name, values in feeds.items()}}


def _network(session: Session, feeds: Mapping[str, Array], maps: Maps, at_once: int) -> Network:
    """The decoder as tiles see it: `at_once` of the videos a call."""

    def run(latents: Array, tile: Tile) -> Array:
        of_tile = maps(tile)
        videos: list[Array] = []
        for first in range(0, len(latents), at_once):
            some = _some(latents, feeds, slice(first, first + at_once))
            videos.append(session.run({**some, **of_tile})["video"])
        return videos[0] if len(videos) == 1 else np.concatenate(videos)

    return run
