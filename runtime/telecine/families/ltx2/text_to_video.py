"""diffusers' `LTX2Pipeline`: from a prompt to a video with sound."""

from __future__ import annotations

from telecine.denoise import Callback
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx2.generation import Generation
from telecine.families.ltx2.start import from_text
from telecine.request import Request


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTX2Pipeline.__call__`: a prompt → (B, num_frames, height, width, 3) frames, and their sound.

    Raises:
        RequestError: a parameter is wrong.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request)
    start = from_text(generation.draw, generation.given, generation.request.share_of_noise(conditioned=False))
    texts = generation.embed_prompts(stage)
    return generation.output(generation.denoise(start, None, texts, stage=stage, callback=callback), stage)
