"""diffusers' `LTX2ConditionPipeline`: a video with sound from a prompt, and from images and videos at its latents."""

from __future__ import annotations

from collections.abc import Sequence

from telecine.condition import Condition
from telecine.denoise import Callback
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx2.conditions import Item
from telecine.families.ltx2.encode import encode_means
from telecine.families.ltx2.generation import Generation
from telecine.families.ltx2.start import Placed, from_conditions
from telecine.latents import pack
from telecine.request import Request


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTX2ConditionPipeline.__call__`: a prompt and conditions → frames, and their sound.

    Raises:
        RequestError: a parameter is wrong.
        BackendError: Pillow or PyAV is needed and missing.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request, conditions=conditions_of(request))
    texts = generation.embed_prompts(stage)
    with stage("encode"):
        placed = [_placed(generation, item) for item in generation.items]
    firsts, keyframes = (
        [each for item, each in zip(generation.items, placed, strict=True) if bool(item.index) == later]
        for later in (False, True)
    )
    noise_scale = generation.request.share_of_noise(conditioned=True)
    start, held = from_conditions(generation.draw, firsts, keyframes, generation.given, noise_scale)
    return generation.output(generation.denoise(start, held, texts, stage=stage, callback=callback), stage)


def conditions_of(request: Request) -> Sequence[Condition]:
    """A request's conditions, which may be one, or none."""
    given = [] if request.conditions is None else request.conditions
    return given if isinstance(given, Sequence) else [given]


def _placed(generation: Generation, item: Item) -> Placed:
    """A condition's tokens, of the transformer's scale."""
    latents = encode_means(generation.models, generation.host, item.pixels, generation.memory.tiling)
    return Placed(tokens=pack(generation.host.normalize_encoded(latents)), strength=item.strength)
