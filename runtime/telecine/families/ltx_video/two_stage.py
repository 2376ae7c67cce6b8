"""The two-stage recipe of LTX-Video 0.9.7: low resolution, upsampled latents, a short second denoising, a resize."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from telecine.checks import check
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, PipelineSpec, Stage
from telecine.families.ltx_video.conditions import condition_schedule
from telecine.families.ltx_video.guidance import request_guidance
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.memory import RunMemory
from telecine.families.stages import Sizes, named, resized
from telecine.families.upscaling import upsample, upsampler_need
from telecine.families.vae import DecodeSettings
from telecine.memory_budget import Need
from telecine.noise import Generator
from telecine.request import Request
from telecine.second_stage import SecondStage
from telecine.shapes import VideoShape

logger = logging.getLogger(__name__)

# Parameters of generate that the second denoising may have of its own; those that it is not given are the first's.
REFINEMENT = (
    "denoise_strength", "num_inference_steps", "timesteps", "guidance_scale", "guidance_rescale", "guidance_sigmas",
    "cfg_star", "stg_scale", "stg_mode", "stg_blocks", "image_cond_noise_scale",
)  # fmt: skip
# LTX-Video 0.9.7 dev's.
DEFAULTS: Mapping[str, Any] = {
    "downscale_factor": 2 / 3,
    "adain_factor": 0.0,
    "tone_map_compression_ratio": 0.0,
    "denoise_strength": 0.4,
    "num_inference_steps": 10,
}


def run(
    spec: PipelineSpec,
    second: SecondStage,
    models: Models,
    request: Request,
    *,
    stage: Stage,
    callback: Callback | None,
) -> Output:
    """A prompt → (B, num_frames, height, width, 3) frames, any height and width; or the second stage's latents.

    Both stages are whole runs of `spec` with the same seeds and texts; the callback sees the steps of both.

    Raises:
        RequestError: a parameter is wrong, or one that two stages cannot heed.
        BundleError: the bundle has no upsampler that doubles the sides.
        Cancelled: the callback stopped the run.
    """
    host = Host.parse(models.host)
    _check(request, host)
    sizes = Sizes.plan(request, second.downscale_factor, host.grid)
    if sizes.first.num_frames != request.num_frames:
        logger.warning("num_frames is %d: making %d frames", request.num_frames, sizes.first.num_frames)
    first = request.changed(**dataclasses.asdict(sizes.first), output_type="latent", seed=request.seeds())
    refinement = {**second.refinement, **dataclasses.asdict(sizes.second), "output_type": request.output_type}
    _check_stages(models, first, first.changed(**refinement), host)

    coarse = spec.run(models, first, stage=named("first", stage), callback=callback)
    assert coarse.latents is not None
    with stage("upsample"):
        latents = upsample(
            models, host.denormalize(coarse.latents), second.adain_factor, second.tone_map_compression_ratio
        )
    refined = spec.run(
        models,
        first.changed(**refinement, latents=host.normalize(latents)),
        stage=named("second", stage),
        callback=callback,
    )
    if refined.frames is None:
        return refined
    return dataclasses.replace(refined, frames=resized(refined.frames, request.height, request.width))


def _check(request: Request, host: Host) -> None:
    host.require_upsampler().check_two_stages()
    if request.latents is not None:
        raise RequestError(
            "latents with two stages",
            expected="none: the first stage makes them",
            fix="Call upscale() with them, then generate() with denoise_strength.",
        )


def _check_stages(models: Models, first: Request, second: Request, host: Host) -> None:
    """Refuse now what a stage would refuse: not after the minutes of the first."""
    needs: tuple[Need, ...] = ()
    for request in (second, first):  # the larger one first: a refusal names what is enough for both
        latent = VideoShape(num_frames=request.num_frames, height=request.height, width=request.width).latent(host.grid)
        planned = condition_schedule(request, host, latent)
        guidance = request_guidance(request, planned.sigmas[:-1], host)
        beside = (_upsampling(models, first, host),) if request is second else ()
        memory = RunMemory.plan(models, request, host, latent, guidance, beside)
        DecodeSettings.of(request, memory.decoding)
        needs = (*beside, *memory.needs, *needs)
    steps = second.num_inference_steps if second.timesteps is None else len(second.timesteps)
    check(
        int(steps * second.denoise_strength) >= 1,
        f"a second stage of {second.denoise_strength} of {steps} steps",
        "at least one whole step",
        "Raise denoise_strength or the number of steps.",
    )
    for seed in first.seeds():
        Generator(seed)
    models.expect(needs, second.tiling_options().memory_limit)


def _upsampling(models: Models, first: Request, host: Host) -> Need:
    latent = VideoShape(num_frames=first.num_frames, height=first.height, width=first.width).latent(host.grid)
    return upsampler_need(models, host, latent, first.videos)
