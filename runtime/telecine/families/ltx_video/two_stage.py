"""The two-stage recipe of LTX-Video 0.9.7: low resolution, upsampled latents, a short second denoising, a resize."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.checks import check, is_whole
from telecine.denoise import Callback
from telecine.errors import BundleError, RequestError
from telecine.families.base import Frames, Models, Output, PipelineSpec, Stage
from telecine.families.ltx_video.conditions import condition_schedule
from telecine.families.ltx_video.decode import DecodeSettings
from telecine.families.ltx_video.guidance import request_guidance
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.memory import RunMemory, upsampler_need
from telecine.families.ltx_video.upscale import upsample
from telecine.memory_budget import Need
from telecine.noise import Generator
from telecine.request import Request
from telecine.resample import BICUBIC, resize
from telecine.second_stage import SecondStage
from telecine.shapes import Grid, VideoShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The videos of the two stages; what was asked for is the second one, resized."""

    first: VideoShape
    second: VideoShape

    @classmethod
    def plan(cls, request: Request | VideoShape, downscale_factor: float, grid: Grid) -> Sizes:
        """The first stage is the size asked for times the factor, to the nearest of the grid; the second is twice that.

        diffusers' documentation rounds to the temporal ratio, which gives sizes that its pipeline refuses.

        Raises:
            RequestError: a side is no positive whole number, or there is no frame.
        """
        for name in ("height", "width"):
            side = getattr(request, name)
            right = is_whole(side) and side > 0
            check(right, f"{name} is {side!r}", "a positive whole number", f"Pass {name} in pixels.")
        height, width = (
            max(round(side * downscale_factor / grid.spatial), 1) * grid.spatial
            for side in (request.height, request.width)
        )
        first = VideoShape.from_request(num_frames=request.num_frames, height=height, width=width, grid=grid)
        return cls(first=first, second=dataclasses.replace(first, height=2 * height, width=2 * width))


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

    coarse = spec.run(models, first, stage=_named("first", stage), callback=callback)
    assert coarse.latents is not None
    with stage("upsample"):
        latents = upsample(
            models, host.denormalize(coarse.latents), second.adain_factor, second.tone_map_compression_ratio
        )
    refined = spec.run(
        models,
        first.changed(**refinement, latents=host.normalize(latents)),
        stage=_named("second", stage),
        callback=callback,
    )
    if refined.frames is None:
        return refined
    return dataclasses.replace(refined, frames=_resized(refined.frames, request.height, request.width))


def _check(request: Request, host: Host) -> None:
    factors = host.require_upsampler()
    if (factors.spatial, factors.temporal) != (2, 1):
        raise BundleError(
            f"this bundle's upsampler enlarges {factors.spatial} times in space and {factors.temporal} in time",
            expected="2 and 1 for two stages: a spatial upsampler",
            fix="Export again with a spatial upscaler; this one serves upscale().",
        )
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


def _named(prefix: str, stage: Stage) -> Stage:
    """`stage`, with what it times told apart from the other run's."""

    def prefixed(name: str) -> AbstractContextManager[None]:
        return stage(f"{prefix} {name}")

    return prefixed


def _resized(frames: Frames, height: int, width: int) -> Frames:
    """(B, F, h, w, 3) frames at the size asked for, as Pillow resizes images by default; a piece at a time."""
    if frames.shape[2:4] == (height, width):
        return frames

    def pieces() -> Iterator[npt.NDArray[Any]]:
        for piece in frames.pieces:
            resized = _resize(piece, height, width)
            del piece
            yield resized
            del resized  # neither lives on while the next tile is decoded

    shape = (*frames.shape[:2], height, width, frames.shape[4])
    return dataclasses.replace(frames, shape=shape, pieces=pieces())


def _resize(piece: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    resized = np.stack([resize(video, height, width, BICUBIC) for video in piece])
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1, out=resized)  # the filter overshoots
