"""diffusers' `LTXConditionPipeline`: a video from a prompt, and from images and videos at any of its frames."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.condition import Condition
from telecine.conditioning import (
    PREFIX_LATENT_FRAMES,
    Canvas,
    Conditioning,
    TokenStrengths,
    last_steps,
    mix_noise,
    usable_frames,
)
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video.encode import check_encoding, encode, image_videos
from telecine.families.ltx_video.generation import Generation, Start
from telecine.families.ltx_video.host import Host
from telecine.latents import pack, unpack
from telecine.media import load_image, load_video, to_pixels
from telecine.noise import randn
from telecine.request import Request
from telecine.rope import grid_index, keyframe_positions, make_tables
from telecine.schedulers.flow_match_euler import Schedule, calculate_shift, make_schedule
from telecine.schedulers.linear_quadratic import linear_quadratic_sigmas
from telecine.shapes import LatentShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A condition whose pixels are ready for the VAE: (N, 3, 8k+1, height, width), N 1 or one a video."""

    pixels: Array
    frame_index: int
    strength: float


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTXConditionPipeline.__call__`: a prompt and conditions → (B, num_frames, height, width, 3) frames.

    Raises:
        RequestError: a parameter is wrong.
        BackendError: Pillow or PyAV is needed and missing.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request, schedule=condition_schedule)
    given = _given_latents(generation)
    items = _items(generation)
    for item in items:
        check_encoding(models, generation.host, item.pixels, generation.memory.tiling)
    prompts = generation.embed_prompts(stage, attend_pads=False)
    with stage("encode"):
        canvas = _canvas(generation, items, given)
    latents = pack(canvas.latents)
    shape = dataclasses.replace(generation.latent, frames=generation.latent.frames + canvas.extra_frames)
    positions = keyframe_positions(canvas.first_frames, shape, generation.host.grid, request.frame_rate)
    start = Start(
        latents=latents,
        rope=make_tables(positions, grid_index(shape), generation.host.rope_frequencies),
        conditioning=_conditioning(generation, canvas, latents) if items else TokenStrengths(np.zeros(1, np.float32)),
        draw_noise=lambda generators: randn(generators, latents.shape),
    )
    latents = generation.denoise(start, prompts, stage=stage, callback=callback)
    clip = unpack(latents, shape)[:, :, canvas.extra_frames :].copy()
    if request.output_type == "latent":
        return Output(latents=clip, seeds=generation.seeds)
    return generation.decode(clip, stage)


def condition_schedule(request: Request, host: Host, latent: LatentShape) -> Schedule:
    """The linear-quadratic schedule, or given timesteps, of which denoise_strength leaves the last part.

    diffusers fails where the scheduler shifts by the number of tokens (0.9.0, 0.9.1). There the timesteps follow the
    shifted sigmas: otherwise a step would not begin where the one before it ended.
    """
    timesteps = request.timesteps
    if timesteps is None:
        timesteps = linear_quadratic_sigmas(request.num_inference_steps) * np.float32(1000)
    schedule = make_schedule(host.scheduler, timesteps=timesteps, mu=calculate_shift(latent.tokens, host.scheduler))
    if host.scheduler.use_dynamic_shifting:
        thousand = np.float32(host.scheduler.num_train_timesteps)
        schedule = Schedule(timesteps=schedule.sigmas[:-1] * thousand, sigmas=schedule.sigmas)
    return last_steps(schedule, request.denoise_strength) if request.denoise_strength < 1 else schedule


def _given_latents(generation: Generation) -> Array | None:
    """(B, C, F, H, W) normalised latents that the denoising changes, where denoise_strength is below 1.

    Raises:
        RequestError: latents without such a strength (diffusers ignores them), or the strength without latents
            (diffusers starts from more noise than the schedule has).
    """
    request = generation.request
    if (request.latents is None) != (request.denoise_strength == 1):
        got = "no latents" if request.latents is None else "latents"
        raise RequestError(
            f"{got} with a denoise_strength of {request.denoise_strength:g}",
            expected="latents where denoise_strength is below 1, and only there",
            fix="Pass both to change a video that exists, or neither to make a new one.",
        )
    if request.latents is None:
        return None
    shape = generation.latent.array_shape(request.videos, generation.host.latent_channels)
    return generation.given_latents(shape, "normalised, (videos, channels, frames, height, width)")


def _items(generation: Generation) -> list[Item]:
    """The request's conditions with their pixels; `image` and `video` are one at frame 0.

    Raises:
        RequestError: both are given, what is no Condition, or one that cannot be used.
        BackendError: Pillow or PyAV is needed and missing.
    """
    request = generation.request
    if request.image is not None:
        if request.conditions is not None or request.video is not None:
            raise RequestError(
                f"an image and {'conditions' if request.video is None else 'a video'}",
                expected="one of the two",
                fix="Add Condition(image=...) to the conditions.",
            )
        return [Item(pixels=image_videos(generation, request.image), frame_index=0, strength=1.0)]
    if request.video is not None:
        if request.conditions is not None:
            raise RequestError(
                "a video and conditions", expected="one of the two", fix="Add Condition(video=...) to the conditions."
            )
        return [_item(generation, Condition(video=request.video))]
    conditions = request.conditions if request.conditions is not None else []
    conditions = conditions if isinstance(conditions, Sequence) else [conditions]
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise RequestError(
                f"conditions hold {type(condition).__name__}",
                expected="telecine.Condition",
                fix="Pass conditions=[Condition(image=..., frame_index=0, strength=1.0), ...].",
            )
    return [_item(generation, condition) for condition in conditions]


def _item(generation: Generation, condition: Condition) -> Item:
    for name in ("index", "crf"):
        if getattr(condition, name) is not None:
            raise RequestError(
                f"a condition with {name} for LTX-Video",
                expected="no such field: it is LTX-2's",
                fix="Pass frame_index, of the video's frames." if name == "index" else "Leave it out.",
            )
    video, index, ratio = generation.video, condition.frame_index, generation.host.grid.temporal
    if index >= video.num_frames:
        raise RequestError(
            f"a condition at frame {index} of {video.num_frames}",
            expected=f"frame_index from 0 to {video.num_frames - 1}",
            fix="Count from 0, or ask for more frames.",
        )
    frames = [load_image(condition.image)] if condition.image is not None else load_video(condition.video)[0]
    used = usable_frames(len(frames), frame_index=index, num_frames=video.num_frames, temporal_ratio=ratio)
    if used < len(frames):
        logger.warning("the video at frame %d has %d frames: using the first %d", index, len(frames), used)
    if index % ratio and used > (PREFIX_LATENT_FRAMES - 1) * ratio + 1:
        raise RequestError(
            f"a video of {used} frames at frame {index}",
            expected=f"a frame_index that is a multiple of {ratio}: a latent frame begins only there",
            fix=f"Use {index - index % ratio}, or a video of {ratio + 1} frames: those stand at any frame.",
        )
    pixels = to_pixels(frames[:used], video.height, video.width)
    return Item(pixels=pixels, frame_index=index, strength=float(condition.strength))


def _canvas(generation: Generation, items: Sequence[Item], given: Array | None) -> Canvas:
    """Noise, or given latents with noise, with the conditions on it; draws are in diffusers' order."""
    request, generators = generation.request, generation.generators
    noise = randn(generators, generation.latent.array_shape(request.videos, generation.host.latent_channels))
    if given is not None:
        noise = mix_noise(given, noise, generation.schedule.sigmas[0])
    canvas = Canvas(noise, generation.host.grid.temporal)
    for item in items:
        pixels = item.pixels
        if 1 < len(pixels) < len(generators):
            pixels = np.repeat(pixels, len(generators) // len(pixels), axis=0)
        # A condition of all videos is sampled once, by the first seed, as diffusers does.
        latents = encode(generation.models, generation.host, pixels, generators, generation.memory.tiling)
        canvas.add(
            np.repeat(latents, request.videos // len(latents), axis=0),
            frame_index=item.frame_index,
            strength=item.strength,
            draw_noise=lambda shape: randn(generators, shape),
        )
    return canvas


def _conditioning(generation: Generation, canvas: Canvas, latents: Array) -> Conditioning:
    scale = generation.request.image_cond_noise_scale
    return TokenStrengths(
        np.repeat(canvas.strengths, generation.latent.height * generation.latent.width),
        initial=latents,
        noise_scale=scale,
        draw_noise=(lambda: randn(generation.generators, latents.shape)) if scale > 0 else None,
    )
