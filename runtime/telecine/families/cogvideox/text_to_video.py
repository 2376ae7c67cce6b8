"""diffusers' `CogVideoXPipeline`: from a prompt to a video."""

from __future__ import annotations

from telecine.denoise import Callback
from telecine.families.base import Models, Output, Stage
from telecine.families.cogvideox.generation import Generation
from telecine.request import Request


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `CogVideoXPipeline.__call__`: a prompt → (B, num_frames, height, width, 3) frames.

    Raises:
        RequestError: a parameter is wrong.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request, num_frames=request.num_frames)
    given = generation.given_latents() if request.latents is not None else None
    text = generation.embed_prompts(stage)
    latents = generation.noise() if given is None else given
    return generation.output(generation.denoise(latents, text, stage=stage, callback=callback), stage)
