"""From latents to frames: the VAE's decoder, whole or in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Frames, Models
from telecine.families.ltx_video.host import Host, NoiseLevel
from telecine.families.uint8_frames import decode_to_uint8, uint8_session
from telecine.latents import mix_decode_noise
from telecine.noise import Generator, randn
from telecine.pixels import to_uint8, to_unit_range
from telecine.request import Request
from telecine.shapes import LatentShape
from telecine.tiling import Largest, Network, Plan, Tile
from telecine.upscale_request import UpscaleRequest

Array = npt.NDArray[np.float32]


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


def decode(
    models: Models,
    host: Host,
    latents: Array,
    settings: DecodeSettings,
    generators: list[Generator],
    stochastic: list[Generator],
) -> Frames:
    """(B, C, F, H, W) latents of the VAE's scale to (B, num_frames, height, width, 3) frames, float32 or uint8.

    The frames are made when they are asked for. `stochastic` are the second streams of the seeds: a decoder that
    injects noise draws its maps from the first one, since all videos of a batch share them.
    """
    feeds: dict[str, Array] = {}
    if host.timestep_conditioning:
        latents = mix_decode_noise(latents, randn(generators, latents.shape), settings.noise_scale)
        feeds["timestep"] = settings.timestep
    shape = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4]).video(host.grid)

    def pieces() -> Iterator[npt.NDArray[Any]]:
        noise = InjectedNoise(host.decoder_noise, stochastic[0], latents, fresh=settings.plan.redraws)
        session = models.session("vae_decoder")
        if settings.output_type == "uint8" and settings.plan.whole:
            uint8 = uint8_session(models, session)
            if uint8 is not None:
                yield _whole_videos(session, uint8, latents, feeds, noise.whole, settings.plan.videos)
                return
        network = _network(session, feeds, noise, settings.plan.videos)
        for video in settings.plan.run(network, latents):
            frames: npt.NDArray[Any] = to_unit_range(video)
            if settings.output_type == "uint8":
                frames = to_uint8(frames)
            del video
            yield frames
            del frames  # neither lives on while the next tile is decoded

    return Frames(
        shape=(len(latents), shape.num_frames, shape.height, shape.width, 3),
        dtype=np.dtype(np.uint8 if settings.output_type == "uint8" else np.float32),
        pieces=pieces(),
    )


class InjectedNoise:
    """Noise maps of a decoder with `inject_noise` (LTX-Video 0.9.1), float32, as its inputs `noise_{scale}`.

    Each is `torch.randn((height, width))` at its level, drawn one by one as the decoder runs. The whole picture has
    one set, `whole`, of which tiles take their part; `fresh` draws a set for each tile, as diffusers' tiling does.

    Source: diffusers `LTXVideoResnetBlock3d.forward`.
    """

    def __init__(self, levels: tuple[NoiseLevel, ...], generator: Generator, latents: Array, *, fresh: bool) -> None:
        self._levels, self._generator, self._fresh = levels, generator, fresh
        self.whole = {} if fresh else self._draw(latents.shape[3], latents.shape[4])

    def of(self, tile: Tile) -> dict[str, Array]:
        """(maps, S*h, S*w) by input."""
        rows, columns = tile.rows, tile.columns
        if self._fresh:
            return self._draw(rows.stop - rows.start, columns.stop - columns.start)
        return {
            f"noise_{scale}": self.whole[f"noise_{scale}"][
                :, scale * rows.start : scale * rows.stop, scale * columns.start : scale * columns.stop
            ]
            for scale, _ in self._levels
        }

    def _draw(self, height: int, width: int) -> dict[str, Array]:
        return {
            f"noise_{scale}": np.stack([self._generator.randn((scale * height, scale * width)) for _ in range(maps)])
            for scale, maps in self._levels
        }


def _whole_videos(
    session: Session, uint8: Session, latents: Array, feeds: dict[str, Array], maps: dict[str, Array], at_once: int
) -> npt.NDArray[np.uint8]:
    """(B, num_frames, height, width, 3) bytes, made where the decoder runs; `at_once` of the videos a call."""
    videos = [
        decode_to_uint8(session, uint8, {**_some(latents, feeds, slice(first, first + at_once)), **maps})["video"]
        for first in range(0, len(latents), at_once)
    ]
    return videos[0] if len(videos) == 1 else np.concatenate(videos)


def _some(latents: Array, feeds: dict[str, Array], videos: slice) -> dict[str, Array]:
    """What the decoder takes of some of the videos."""
    return {"latents": latents[videos], **{name: values[videos] for name, values in feeds.items()}}


def _network(session: Session, feeds: dict[str, Array], noise: InjectedNoise, at_once: int) -> Network:
    """The decoder as tiles see it: `at_once` of the videos a call."""

    def run(latents: Array, tile: Tile) -> Array:
        maps = noise.of(tile)
        videos: list[Array] = []
        for first in range(0, len(latents), at_once):
            some = _some(latents, feeds, slice(first, first + at_once))
            videos.append(session.run({**some, **maps})["video"])
        return videos[0] if len(videos) == 1 else np.concatenate(videos)

    return run
