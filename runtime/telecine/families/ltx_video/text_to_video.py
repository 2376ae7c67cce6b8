"""diffusers' `LTXPipeline`: from a prompt to a video."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from telecine.denoise import Callback, denoise
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video.decode import DecodeSettings, decode
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.text import prompt_embeddings
from telecine.families.ltx_video.transformer import BoundTransformer
from telecine.guidance import Guidance
from telecine.latents import pack, unpack
from telecine.noise import Generator, randn, second_stream
from telecine.request import Request
from telecine.rope import grid_index, make_tables, video_positions
from telecine.schedulers.flow_match_euler import Schedule, calculate_shift, make_schedule, pipeline_sigmas
from telecine.shapes import LatentShape, VideoShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTXPipeline.__call__`: a prompt → (B, num_frames, height, width, 3) frames.

    Raises:
        RequestError: a parameter is wrong.
        Cancelled: the callback stopped the run.
    """
    host = Host.parse(models.host)
    shape = _video_shape(request, host)
    latent = shape.latent(host.grid)
    guidance = Guidance(scale=request.guidance_scale, rescale=request.guidance_rescale)
    schedule = _schedule(request, host, latent)
    seeds = request.seeds()
    generators = [Generator(seed) for seed in seeds]
    stochastic = [second_stream(seed) for seed in seeds]
    latents = _initial_latents(request, host, latent, generators)
    settings = DecodeSettings.of(request, host, latent)  # refused now, not after the denoising

    with stage("text"):
        text, mask = prompt_embeddings(models, request, host, guidance)
    with stage("denoise"):
        rope = make_tables(
            video_positions(latent, host.grid, request.frame_rate), grid_index(latent), host.rope_frequencies
        )
        session = models.session("transformer")
        with BoundTransformer(session, host, text, mask, rope, latents.shape, guidance.passes) as network:
            latents = denoise(
                network,
                latents,
                config=host.scheduler,
                schedule=schedule,
                guidance=guidance,
                draw_noise=(lambda: randn(stochastic, latents.shape)) if host.scheduler.stochastic_sampling else None,
                callback=callback,
            )
    if request.output_type == "latent":
        return Output(latents=latents, seeds=seeds)
    with stage("decode"):
        frames = decode(models, host, unpack(latents, latent), settings, generators, stochastic)
        return Output(frames=frames, seeds=seeds)


def _video_shape(request: Request, host: Host) -> VideoShape:
    shape = VideoShape.from_request(
        num_frames=request.num_frames, height=request.height, width=request.width, grid=host.grid
    )
    if shape.num_frames != request.num_frames:
        logger.warning(
            "num_frames %d is not %d*k+1: making %d frames", request.num_frames, host.grid.temporal, shape.num_frames
        )
    return shape


def _schedule(request: Request, host: Host, latent: LatentShape) -> Schedule:
    """The schedule of `LTXPipeline`; given timesteps replace its sigmas (diffusers fails there)."""
    mu = calculate_shift(latent.tokens, host.scheduler)
    if request.timesteps is not None:
        return make_schedule(host.scheduler, timesteps=request.timesteps, mu=mu)
    return make_schedule(host.scheduler, sigmas=pipeline_sigmas(request.num_inference_steps), mu=mu)


def _initial_latents(request: Request, host: Host, latent: LatentShape, generators: list[Generator]) -> Array:
    """(B, T, C) normal noise, drawn as (B, C, F, H, W) and packed; or the caller's packed latents as they are."""
    expected = (request.videos, latent.tokens, host.latent_channels)
    if request.latents is None:
        return pack(randn(generators, latent.array_shape(request.videos, host.latent_channels)))
    latents = np.ascontiguousarray(request.latents, dtype=np.float32)
    if latents.shape != expected:
        raise RequestError(
            f"latents have shape {latents.shape}",
            expected=f"{expected}: packed, (videos, tokens, channels)",
            fix="Pass what output_type='latent' returns, or fit height, width and num_frames to them.",
        )
    if not np.isfinite(latents).all():
        raise RequestError("latents hold NaN or infinity", expected="finite numbers", fix="Look at what made them.")
    return latents
