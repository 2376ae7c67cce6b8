"""Latents made larger by a graph, in the families that have one: what is given, what it takes, what it makes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from telecine.checks import floats
from telecine.errors import RequestError
from telecine.families.base import Models
from telecine.families.needs import network_need
from telecine.families.vae_memory import VaeHost, VaeMemory
from telecine.media import load_video, to_pixels
from telecine.memory_budget import FLOAT, Need
from telecine.shapes import LatentShape, VideoShape
from telecine.tiling import Plan, TilingOptions
from telecine.upsampling import UpsamplerFactors, adain, tone_map
from telecine.upscale_request import UpscaleRequest

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


class UpscaledHost(VaeHost, Protocol):
    """What the manifest tells of a model whose latents may be made larger."""

    @property
    def latent_channels(self) -> int: ...

    def require_upsampler(self) -> UpsamplerFactors: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpscaleMemory:
    """An upscaling within its `memory_limit`: its stages in their order, and how the VAE is run."""

    needs: tuple[Need, ...]
    tiling: TilingOptions
    decoding: Plan

    @classmethod
    def plan(
        cls, models: Models, request: UpscaleRequest, host: UpscaledHost, latent: LatentShape, *, encodes: bool
    ) -> UpscaleMemory:
        """For (request.videos, C, F, H, W) latents of the shape `latent`, which are enlarged.

        Raises:
            RequestError: a limit that cannot be met, or tiles that cannot be.
            EngineError: an engine takes no such tiles, or there is none.
        """
        enlarged = host.require_upsampler().enlarged(latent)
        sides = (latent, enlarged)
        host_bytes = sum(request.videos * each.tokens * host.latent_channels * FLOAT for each in sides)
        if encodes:
            video = latent.video(host.grid)
            host_bytes += video.num_frames * video.height * video.width * 3 * FLOAT
        upsampling = upsampler_need(models, host, latent, request.videos, host_bytes)
        encoded = latent if encodes else None
        vae = VaeMemory.plan(models, request, host, host_bytes, upsampling.least, encoded=encoded, decoded=enlarged)
        return cls(needs=(*vae.encoding, upsampling, *vae.decoder), tiling=vae.options, decoding=vae.decoding)


def upsampler_need(models: Models, host: UpscaledHost, latent: LatentShape, videos: int, host_bytes: int = 0) -> Need:
    """Of enlarging (videos, C, F, H, W) latents of this shape."""
    enlarged = host.require_upsampler().enlarged(latent).tokens * host.latent_channels
    return network_need(models, "latent_upsampler", videos * latent.tokens, host_bytes + 4 * videos * enlarged * FLOAT)


def upsample(models: Models, latents: Array, adain_factor: float, tone_map_compression_ratio: float) -> Array:
    """(B, C, F, H, W) denormalised latents → the same, upsampled.

    Raises:
        RequestError: AdaIN of latents that have one value a channel.
    """
    if adain_factor > 0 and latents[0, 0].size == 1:
        raise RequestError(
            "AdaIN of a single latent",
            expected="a video of more than one latent: one value has no deviation to match",
            fix="Use adain_factor=0, or a larger or longer video.",
        )
    upsampled = models.session("latent_upsampler").run({"latents": latents})["latents_upsampled"]
    if adain_factor > 0:
        upsampled = adain(upsampled, latents, adain_factor)
    if tone_map_compression_ratio > 0:
        upsampled = tone_map(upsampled, tone_map_compression_ratio)
    return upsampled


def given_latents(request: UpscaleRequest, host: UpscaledHost) -> Array:
    """The caller's (B, C, F, H, W) latents; a height and width that are given must be theirs."""
    latents = np.ascontiguousarray(floats("latents", request.latents))
    sides = {"height": latents.shape[3] * host.grid.spatial, "width": latents.shape[4] * host.grid.spatial}
    for name, side in sides.items():
        if getattr(request, name) not in (None, side):
            raise RequestError(
                f"{name} is {getattr(request, name)}",
                expected=f"{side}, which the latents have",
                fix=f"Leave {name} out: it is what a video is resized to before it is upscaled.",
            )
    if latents.shape[1] != host.latent_channels or not np.isfinite(latents).all():
        what = f"{latents.shape[1]} channels" if latents.shape[1] != host.latent_channels else "NaN or infinity"
        raise RequestError(
            f"latents hold {what}",
            expected=f"finite numbers in {host.latent_channels} channels",
            fix="Pass latents that this model made.",
        )
    return latents


def given_video(request: UpscaleRequest, host: UpscaledHost) -> tuple[Array, float | None]:
    """(1, 3, num_frames, height, width) in [-1, 1], resized as asked, and the frame rate where it is a file's."""
    frames, rate = load_video(request.video)
    height = frames[0].shape[0] if request.height is None else request.height
    width = frames[0].shape[1] if request.width is None else request.width
    shape = VideoShape.from_request(num_frames=len(frames), height=height, width=width, grid=host.grid)
    request.check_pixels(shape.num_frames, shape.height, shape.width)
    if shape.num_frames != len(frames):
        logger.warning(
            "%d frames are not %d*k+1: upscaling the first %d", len(frames), host.grid.temporal, shape.num_frames
        )
    return to_pixels(frames[: shape.num_frames], shape.height, shape.width), rate
