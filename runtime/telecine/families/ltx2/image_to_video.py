"""diffusers' `LTX2ImageToVideoPipeline`: from a first frame and a prompt to a video with sound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from telecine.condition import ImageInput, is_list_of_images
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx2 import text_to_video
from telecine.families.ltx2.encode import encode_means
from telecine.families.ltx2.generation import Generation
from telecine.families.ltx2.images import first_frame
from telecine.families.ltx2.start import from_image
from telecine.request import Request

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTX2ImageToVideoPipeline.__call__`: frames after a first one, and their sound.

    Given latents hold the clean first frame already. With neither an image nor latents, this is text to video.

    Raises:
        RequestError: a parameter is wrong.
        BackendError: Pillow or PyAV is needed and missing.
        Cancelled: the callback stopped the run.
    """
    if request.image is None and request.latents is None:
        return text_to_video.run(models, request, stage=stage, callback=callback)
    if request.image is not None and request.latents is not None:
        raise RequestError(
            "an image and latents",
            expected="one of the two: the first frame of given latents is the image",
            fix="Leave one out, or pass conditions=[Condition(image=...)] with latents and a noise_scale.",
        )
    generation = Generation.prepare(models, request, image=request.image is not None)
    pixels = None if request.image is None else _pixels(generation, request.image)
    texts = generation.embed_prompts(stage)
    first = None
    if pixels is not None:
        with stage("encode"):
            first = _first_latents(generation, pixels)
    noise_scale = generation.request.share_of_noise(conditioned=False)
    start, held = from_image(generation.draw, first, generation.given, noise_scale)
    return generation.output(generation.denoise(start, held, texts, stage=stage, callback=callback), stage)


def _pixels(generation: Generation, given: ImageInput | Sequence[ImageInput]) -> Array:
    """(N, 3, 1, height, width) pixels in [-1, 1] of the request's images: one for all, one a prompt or one a video.

    Raises:
        RequestError: another number of images, or one that cannot be used.
        BackendError: Pillow or PyAV is needed and missing.
    """
    request, video = generation.request, generation.video
    images = given if is_list_of_images(given) else [given]
    counts = sorted({1, request.prompts, request.videos})
    if len(images) not in counts:
        raise RequestError(
            f"{len(images)} images",
            expected=f"{' or '.join(map(str, counts))}: one for all, one a prompt, or one a video",
            fix="For several images in one video, pass conditions=[Condition(image=..., index=...), ...].",
        )
    return np.concatenate([first_frame(image, video.height, video.width, request.image_crf) for image in images])


def _first_latents(generation: Generation, pixels: Array) -> Array:
    """(1 or B, C, 1, H, W) normalised latents of the images."""
    encoded = encode_means(generation.models, generation.host, pixels, generation.memory.tiling)
    latents = generation.host.normalize_encoded(encoded)
    return latents if len(latents) == 1 else np.repeat(latents, generation.request.videos // len(latents), axis=0)
