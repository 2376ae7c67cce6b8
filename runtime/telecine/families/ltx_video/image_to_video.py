"""diffusers' `LTXImageToVideoPipeline`: from a first frame and a prompt to a video."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.conditioning import FirstFrame
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video import text_to_video
from telecine.families.ltx_video.encode import check_encoding, encode, image_videos
from telecine.families.ltx_video.generation import Generation, Start, shifted_schedule
from telecine.families.ltx_video.text_to_video import grid_rope, packed_latents, packed_output
from telecine.latents import pack
from telecine.noise import Generator, randn
from telecine.request import Request

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTXImageToVideoPipeline.__call__`: (B, num_frames, height, width, 3) frames after a first one.

    Given latents hold the clean first frame already. With neither an image nor latents, this is text to video.

    Raises:
        RequestError: a parameter is wrong.
        BackendError: Pillow is needed and missing.
        Cancelled: the callback stopped the run.
    """
    if request.image is None and request.latents is None:
        return text_to_video.run(models, request, stage=stage, callback=callback)
    if request.image is not None and request.latents is not None:
        raise RequestError(
            "an image and latents",
            expected="one of the two: the first frame of given latents is the image",
            fix="Leave one out, or pass conditions=[Condition(image=...)] with denoise_strength below 1.",
        )
    generation = Generation.prepare(models, request, schedule=shifted_schedule)
    images = None if request.image is None else image_videos(generation, request.image)
    given = packed_latents(generation) if images is None else None
    if images is not None:
        check_encoding(models, generation.host, images, generation.memory.tiling)
    prompts = generation.embed_prompts(stage)
    if images is not None:
        with stage("encode"):
            given = _image_latents(generation, images)
    assert given is not None
    latent = generation.latent
    start = Start(
        latents=given,
        rope=grid_rope(generation),
        conditioning=FirstFrame(frame_tokens=latent.height * latent.width, tokens=latent.tokens),
        draw_noise=lambda generators: _later_noise(generation, generators),
    )
    latents = generation.denoise(start, prompts, stage=stage, callback=callback)
    return packed_output(generation, latents, stage)


def _image_latents(generation: Generation, images: Array) -> Array:
    """(B, T, C) normal noise behind the images' own latents, which are drawn first."""
    videos, generators = generation.request.videos, generation.generators
    if len(generators) > 1:  # each video's image is sampled by its own seed (diffusers needs a list of images there)
        images = np.repeat(images, videos // len(images), axis=0)
    first = encode(generation.models, generation.host, images, generators, generation.memory.tiling)
    noise = randn(generators, generation.latent.array_shape(videos, generation.host.latent_channels))
    return pack(np.concatenate([np.repeat(first, videos // len(first), axis=0), noise[:, :, 1:]], axis=2))


def _later_noise(generation: Generation, generators: list[Generator]) -> Array:
    """(B, T - H·W, C) noise of a stochastic step, drawn as diffusers does: unpacked, without the first frame."""
    batch, channels, frames, *sides = generation.latent.array_shape(
        generation.request.videos, generation.host.latent_channels
    )
    return pack(randn(generators, (batch, channels, frames - 1, *sides)))
