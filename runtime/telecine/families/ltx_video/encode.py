"""From images and videos to latents: the VAE's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import numpy.typing as npt

from telecine.condition import ImageInput, is_list_of_images
from telecine.conditioning import sample_posterior
from telecine.errors import RequestError
from telecine.families.base import Models
from telecine.families.ltx_video.generation import Generation
from telecine.families.ltx_video.host import Host
from telecine.families.vae import largest_tile
from telecine.latents import normalize
from telecine.media import load_image, to_pixels
from telecine.noise import Generator
from telecine.shapes import VideoShape
from telecine.tiling import Plan, TilingOptions, plan_encoder

Array = npt.NDArray[np.float32]


def image_videos(generation: Generation, images: ImageInput | Sequence[ImageInput]) -> Array:
    """(N, 3, 1, height, width) pixels in [-1, 1] of the images of a request: one for all, one a prompt or one a video.

    Raises:
        RequestError: another number of images, or one that cannot be used.
        BackendError: Pillow is needed and missing.
    """
    request, video = generation.request, generation.video
    listed = images if is_list_of_images(images) else [images]
    counts = sorted({1, request.prompts, request.videos})
    if len(listed) not in counts:
        raise RequestError(
            f"{len(listed)} images",
            expected=f"{' or '.join(map(str, counts))}: one for all, one a prompt, or one a video",
            fix="For several images in one video, pass conditions=[Condition(image=..., frame_index=...), ...].",
        )
    return np.concatenate([to_pixels([load_image(image)], video.height, video.width) for image in listed])


def check_encoding(models: Models, host: Host, videos: Array, options: TilingOptions) -> None:
    """Refuse what `encode` would refuse, before anything is run.

    Raises:
        BundleError: the bundle has no encoder.
        RequestError: as `encode`.
    """
    models.require("vae_encoder")
    _plan(models, host, videos[:1], options)


def encode(models: Models, host: Host, videos: Array, generators: Sequence[Generator], options: TilingOptions) -> Array:
    """(N, 3, 8k+1, 32h, 32w) videos in [-1, 1] → (N, C, k+1, h, w) normalised latents, sampled from their posteriors.

    One after the other, as diffusers does; generators take turns.

    Raises:
        RequestError: a memory limit that encoding cannot meet, or tiles that cannot be.
    """
    sampled = []
    for video, generator in zip(videos, cycle(generators), strict=False):
        moments = encode_moments(models, host, video[np.newaxis], options)
        noise = generator.randn((1, moments.shape[1] - 1, *moments.shape[2:]))
        # diffusers leaves the VAE's scaling factor out here; every release has 1.
        sampled.append(normalize(sample_posterior(moments, noise), host.latents_mean, host.latents_std, 1.0))
    return np.concatenate(sampled)


def encode_moments(models: Models, host: Host, video: Array, options: TilingOptions) -> Array:
    """(N, 3, 8k+1, 32h, 32w) video in [-1, 1] → (N, C + 1, k+1, h, w): C means and one log-variance."""
    session = models.session("vae_encoder")
    pieces = _plan(models, host, video, options).run(lambda part, _: session.run({"video": part})["moments"], video)
    return np.concatenate(list(pieces), axis=2)


def _plan(models: Models, host: Host, video: Array, options: TilingOptions) -> Plan:
    latent = VideoShape(num_frames=video.shape[2], height=video.shape[3], width=video.shape[4]).latent(host.grid)
    largest = largest_tile(models, "vae_encoder")
    return plan_encoder(options, latent, host.grid, host.encoder, videos=len(video), largest=largest)
