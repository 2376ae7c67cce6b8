"""The two-stage recipe of LTX-2: half the resolution, upsampled latents, a short second denoising with the sound."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, PipelineSpec, Stage
from telecine.families.ltx2 import text_to_video
from telecine.families.ltx2.condition_to_video import conditions_of
from telecine.families.ltx2.generation import Generation
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.request import LTX2Request
from telecine.families.ltx2.schedule import SECOND_STAGE_SIGMAS
from telecine.families.stages import Sizes, named, resized
from telecine.families.upscaling import upsample, upsampler_need
from telecine.memory_budget import check_limit
from telecine.request import Request
from telecine.second_stage import SecondStage
from telecine.shapes import VideoShape

logger = logging.getLogger(__name__)

# Parameters of generate that the second denoising may have of its own; those that it is not given are the first's.
REFINEMENT = (
    "sigmas", "noise_scale", "guidance_scale", "stg_scale", "modality_scale", "guidance_rescale", "guidance_sigmas",
    "audio_guidance_scale", "audio_stg_scale", "audio_modality_scale", "audio_guidance_rescale",
    "spatio_temporal_guidance_blocks",
)  # fmt: skip
# diffusers' documentation: three steps of a distilled model, without guidance, which begin as noisy as their first
# sigma says. Its scheduler is static, and so are these sigmas, whatever the model's own is.
DEFAULTS: Mapping[str, Any] = {
    "downscale_factor": 1 / 2,
    "adain_factor": 0.0,
    "tone_map_compression_ratio": 0.0,
    "sigmas": list(SECOND_STAGE_SIGMAS),
    "noise_scale": SECOND_STAGE_SIGMAS[0],
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
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
    """A prompt → (B, num_frames, height, width, 3) frames, any height and width, with sound; or latents of both.

    Both stages are whole runs of `spec` with the same seeds and texts, and the second one goes on with the sound of
    the first; the callback sees the steps of both.

    Raises:
        RequestError: a parameter is wrong, or one that two stages cannot heed.
        BundleError: the bundle has no upsampler that doubles the sides.
        Cancelled: the callback stopped the run.
    """
    assert isinstance(request, LTX2Request)
    host = Host.parse(models.host)
    host.require_upsampler().check_two_stages()
    _check(request)
    sizes = Sizes.plan(request, second.downscale_factor, host.grid)
    if sizes.first.num_frames != request.num_frames:
        logger.warning("num_frames is %d: making %d frames", request.num_frames, sizes.first.num_frames)
    first = request.changed(**dataclasses.asdict(sizes.first), output_type="latent", seed=request.seeds())
    refinement = {**second.refinement, **dataclasses.asdict(sizes.second), "shift_sigmas": False}
    # What is wrong with the second stage is said now, not after the minutes of the first.
    Generation.prepare(models, _second(first, refinement, request.output_type), conditions=conditions_of(request))
    latent = VideoShape(num_frames=first.num_frames, height=first.height, width=first.width).latent(host.grid)
    upsampling, limit = upsampler_need(models, host, latent, first.videos), first.tiling_options().memory_limit
    check_limit(limit, upsampling.least)
    # Without an image, latents that are given to LTX2ImageToVideoPipeline would have a first frame to be kept.
    made_of = text_to_video.run if "image" in spec.takes and request.image is None else spec.run

    coarse = made_of(models, first, stage=named("first", stage), callback=callback)
    assert coarse.latents is not None
    with stage("upsample"):
        models.expect((upsampling,), limit)
        latents = upsample(models, coarse.latents, second.adain_factor, second.tone_map_compression_ratio)
    given = {"latents": latents, "audio_latents": coarse.audio_latents}
    last = _second(first, refinement | given, request.output_type)
    refined = made_of(models, last, stage=named("second", stage), callback=callback)
    if refined.frames is None:
        return refined
    return dataclasses.replace(refined, frames=resized(refined.frames, request.height, request.width))


def _second(first: LTX2Request, refinement: Mapping[str, Any], output_type: str) -> LTX2Request:
    """The second stage's request: its steps are its sigmas, and an image is in its latents already."""
    return dataclasses.replace(first.changed(**refinement, output_type=output_type), timesteps=None, image=None)


def _check(request: LTX2Request) -> None:
    for name in ("latents", "audio_latents"):
        if getattr(request, name) is not None:
            raise RequestError(
                f"{name} with two stages",
                expected="none: the first stage makes them",
                fix="Call upscale() with latents, then generate() with both, sigmas and a noise_scale.",
            )
