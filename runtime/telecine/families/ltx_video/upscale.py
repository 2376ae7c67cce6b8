"""diffusers' `LTXLatentUpsamplePipeline`: from a video or its latents to larger ones."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from telecine.checks import floats
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video.decode import DecodeSettings, decode
from telecine.families.ltx_video.encode import encode
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.memory import UpscaleMemory
from telecine.media import load_video, to_pixels
from telecine.noise import Generator, second_stream
from telecine.shapes import LatentShape, VideoShape
from telecine.upsampling import adain, tone_map
from telecine.upscale_request import UpscaleRequest

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

FRAME_RATE = 25.0  # of videos that do not tell theirs: LTX-Video's own default


def run(models: Models, request: UpscaleRequest, *, stage: Stage) -> Output:
    """diffusers' `LTXLatentUpsamplePipeline.__call__`: a video or (B, C, F, H, W) latents → larger frames or latents.

    Raises:
        RequestError: a parameter is wrong.
        BundleError: the bundle has no upsampler.
    """
    host = Host.parse(models.host)
    factors = host.require_upsampler()
    seeds = request.seeds()
    generators = [Generator(seed) for seed in seeds]
    rate = None
    if request.latents is not None:
        latents = _given_latents(request, host)
        latent = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4])
        memory = UpscaleMemory.plan(models, request, host, latent, encodes=False)
    else:
        video, rate = _given_video(request, host)
        latent = VideoShape(num_frames=video.shape[2], height=video.shape[3], width=video.shape[4]).latent(host.grid)
        memory = UpscaleMemory.plan(models, request, host, latent, encodes=True)
    settings = DecodeSettings.of(request, memory.decoding)  # refused now, not after the encoding
    models.expect(memory.needs, memory.tiling.memory_limit)
    if request.latents is None:
        with stage("encode"):
            latents = encode(models, host, video, generators, memory.tiling)
    with stage("upsample"):
        latents = upsample(models, host.denormalize(latents), request.adain_factor, request.tone_map_compression_ratio)
    # A temporal upsampler puts frames between frames: the video stays as long as it was.
    rate = request.frame_rate or (rate or FRAME_RATE) * factors.temporal
    if request.output_type == "latent":
        return Output(latents=host.normalize(latents), seeds=seeds, frame_rate=rate)
    with stage("decode"):
        frames = decode(models, host, latents, settings, generators, [second_stream(seed) for seed in seeds])
        return Output(frames=frames, seeds=seeds, frame_rate=rate)


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


def _given_latents(request: UpscaleRequest, host: Host) -> Array:
    """The caller's (B, C, F, H, W) normalised latents; a height and width that are given must be theirs."""
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


def _given_video(request: UpscaleRequest, host: Host) -> tuple[Array, float | None]:
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
