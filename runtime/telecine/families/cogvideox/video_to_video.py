"""diffusers' `CogVideoXVideoToVideoPipeline`: a video changed as a prompt says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.cogvideox.generation import Generation
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.vae import encode
from telecine.media import load_video, to_pixels
from telecine.request import Request
from telecine.schedulers.cogvideox import add_noise

Array = npt.NDArray[np.float32]


def run(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `CogVideoXVideoToVideoPipeline.__call__`: a video → (B, num_frames, height, width, 3) frames.

    Given latents are denoised as they are, by the last part of the steps.

    Raises:
        RequestError: a parameter is wrong, or there is neither a video nor latents, or both.
        BackendError: PyAV or Pillow is needed and missing.
        Cancelled: the callback stopped the run.
    """
    if (request.video is None) == (request.latents is None):
        raise RequestError(
            "neither a video nor latents" if request.video is None else "a video and latents",
            expected="one of the two",
            fix="Pass video=, a path or frames.",
        )
    frames = None if request.video is None else load_video(request.video)[0]
    count = len(frames) if frames is not None else _given_frames(models, request)
    generation = Generation.prepare(
        models, request, num_frames=count, strength=request.strength, video=frames is not None
    )
    _check_frames(generation, None if frames is None else len(frames))
    if frames is None:
        given = generation.given_latents()
        text = generation.embed_prompts(stage)
        return generation.output(generation.denoise(given, text, stage=stage, callback=callback), stage)
    pixels = to_pixels(frames, generation.video.height, generation.video.width)
    text = generation.embed_prompts(stage)
    with stage("encode"):
        videos = np.repeat(pixels, len(generation.generators), axis=0)  # each by its own seed
        encoded = generation.host.normalize(encode(models, videos, generation.generators, generation.encoding))
        original = encoded.transpose(0, 2, 1, 3, 4)
        original = np.repeat(original, request.videos // len(original), axis=0)
        latents = add_noise(generation.schedule, original, generation.noise())
    return generation.output(generation.denoise(latents, text, stage=stage, callback=callback), stage)


def _given_frames(models: Models, request: Request) -> int:
    """How many frames the caller's latents decode to, where they have frames at all."""
    assert request.latents is not None
    shape = np.shape(request.latents)
    return Host.parse(models.host).grid.num_frames(shape[1]) if len(shape) == 5 and shape[1] > 0 else 1


def _check_frames(generation: Generation, frames: int | None) -> None:
    """Refuse what the chunks of the encoder, or the groups of the transformer, have no place for."""
    host, clip = generation.host, generation.clip
    if frames is not None and frames % host.grid.temporal not in (0, 1):
        below = frames // host.grid.temporal * host.grid.temporal
        raise RequestError(
            f"a video of {frames} frames",
            expected=f"a multiple of {host.grid.temporal}, or one more (diffusers encodes others in halves of groups,"
            " and makes more frames than it was given)",
            fix=f"Use the first {below + 1} frames, or {max(below, 1)}.",
        )
    if clip.frames % host.grid.patch_t:
        raise RequestError(
            f"a video of {clip.frames} latent frames",
            expected=f"a multiple of {host.grid.patch_t}, which this model denoises at once",
            fix=f"Use a video of {host.grid.num_frames(clip.frames + 1)} frames.",
        )
