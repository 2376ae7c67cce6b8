"""diffusers' `CogVideoXImageToVideoPipeline`: from a first frame and a prompt to a video."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.condition import is_list_of_images
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.cogvideox.generation import Generation
from telecine.families.cogvideox.vae import encode
from telecine.media import load_image, to_pixels
from telecine.request import Request

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `CogVideoXImageToVideoPipeline.__call__`: (B, num_frames, height, width, 3) frames after a first one.

    Raises:
        RequestError: a parameter is wrong, or there is no image.
        BackendError: Pillow is needed and missing.
        Cancelled: the callback stopped the run.
    """
    generation = Generation.prepare(models, request, num_frames=request.num_frames, image=True)
    given = generation.given_latents() if request.latents is not None else None
    pixels = _pixels(generation)
    text = generation.embed_prompts(stage)
    with stage("encode"):
        image = _image_latents(generation, pixels)
    latents = generation.noise() if given is None else given
    return generation.output(generation.denoise(latents, text, stage=stage, callback=callback, image=image), stage)


def _pixels(generation: Generation) -> Array:
    """(N, 3, 1, height, width) pixels in [-1, 1] of the request's images: one for all, one a prompt or one a video.

    Raises:
        RequestError: no image, another number of them, or one that cannot be used.
        BackendError: Pillow is needed and missing.
    """
    request, video = generation.request, generation.video
    if request.image is None:
        raise RequestError("no image", expected="the image that the video begins with", fix="Pass image=.")
    images = request.image if is_list_of_images(request.image) else [request.image]
    counts = sorted({1, request.prompts, request.videos})
    if len(images) not in counts:
        raise RequestError(
            f"{len(images)} images",
            expected=f"{' or '.join(map(str, counts))}: one for all, one a prompt, or one a video",
            fix="Give one image for each video.",
        )
    return np.concatenate([to_pixels([load_image(image)], video.height, video.width) for image in images])


def _image_latents(generation: Generation, pixels: Array) -> Array:
    """(B, F, C, H, W): the images' own latents, which are drawn before the noise, and zeros after them.

    They stand at the first frame that is denoised. In a model of 1.5 with an odd number of latents that is a frame
    which is dropped before decoding: so it is in diffusers.
    """
    videos, generators = generation.request.videos, generation.generators
    if len(generators) > 1:  # each video's image is sampled by its own seed
        pixels = np.repeat(pixels, videos // len(pixels), axis=0)
    sampled = generation.host.normalize(encode(generation.models, pixels, generators, generation.encoding), image=True)
    first = sampled.transpose(0, 2, 1, 3, 4)
    later = np.zeros((videos, generation.latent.frames - 1, *generation.shape[2:]), np.float32)
    return np.concatenate([np.repeat(first, videos // len(first), axis=0), later], axis=1)
