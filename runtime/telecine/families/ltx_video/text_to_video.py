"""diffusers' `LTXPipeline`: from a prompt to a video."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.conditioning import Conditioning
from telecine.denoise import Callback
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video.generation import Generation, Start, shifted_schedule
from telecine.latents import pack, unpack
from telecine.noise import randn
from telecine.request import Request
from telecine.rope import RopeTables, grid_index, make_tables, video_positions

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTXPipeline.__call__`: a prompt → (B, num_frames, height, width, 3) frames.

    Raises:
        RequestError: a parameter is wrong.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request, schedule=shifted_schedule)
    latents = packed_latents(generation) if request.latents is not None else _noise(generation)
    start = Start(
        latents=latents,
        rope=grid_rope(generation),
        conditioning=Conditioning(),
        draw_noise=lambda generators: randn(generators, latents.shape),
    )
    prompts = generation.embed_prompts(stage)
    latents = generation.denoise(start, prompts, stage=stage, callback=callback)
    return packed_output(generation, latents, stage)


def packed_latents(generation: Generation) -> Array:
    """(B, T, C): the caller's packed latents as they are.

    Raises:
        RequestError: another shape, or values that are not finite.
    """
    shape = (generation.request.videos, generation.latent.tokens, generation.host.latent_channels)
    return generation.given_latents(shape, "packed, (videos, tokens, channels)")


def grid_rope(generation: Generation) -> RopeTables:
    """Positions of a clip whose frames are evenly spaced, the first one too."""
    positions = video_positions(generation.latent, generation.host.grid, generation.request.frame_rate)
    return make_tables(positions, grid_index(generation.latent), generation.host.rope_frequencies)


def packed_output(generation: Generation, latents: Array, stage: Stage) -> Output:
    """What is made of (B, T, C) latents: frames, or the latents themselves, packed as they are."""
    if generation.request.output_type == "latent":
        return Output(latents=latents, seeds=generation.seeds)
    return generation.decode(unpack(latents, generation.latent), stage)


def _noise(generation: Generation) -> Array:
    """(B, T, C) normal noise, drawn as (B, C, F, H, W) and packed."""
    shape = generation.latent.array_shape(generation.request.videos, generation.host.latent_channels)
    return pack(randn(generation.generators, shape))
