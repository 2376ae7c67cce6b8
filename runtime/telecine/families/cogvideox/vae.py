"""Between pixels and latents: the VAE in chunks, whole or in tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.families.base import Frames, Models
from telecine.families.cogvideox.chunks import DECODER, ENCODER
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.tiling import VaePlan, run_tiles
from telecine.noise import Generator
from telecine.pixels import to_uint8, to_unit_range
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]


def decode(models: Models, host: Host, latents: Array, plan: VaePlan, output_type: str) -> Frames:
    """(B, F, C, H, W) latents of the transformer's scale → (B, num_frames, height, width, 3) frames, as they are asked
    for: a chunk at a time, or all of them where there are tiles."""
    as_bytes = output_type == "uint8"
    latents = host.denormalize(latents.transpose(0, 2, 1, 3, 4).copy())
    shape = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4]).video(host.grid)

    def pieces() -> Iterator[npt.NDArray[Any]]:
        if plan.tiles is None and as_bytes:
            yield from DECODER.run(models, latents, uint8=True)
            return
        videos = (
            DECODER.run(models, latents)
            if plan.tiles is None
            else run_tiles(plan, lambda part: DECODER.run_whole(models, part), latents)
        )
        for video in videos:
            frames: npt.NDArray[Any] = to_unit_range(video)
            if as_bytes:  # of tiles
                frames = to_uint8(frames)
            del video
            yield frames
            del frames  # neither lives on while the next chunk is decoded

    return Frames(
        shape=(len(latents), shape.num_frames, shape.height, shape.width, 3),
        dtype=np.dtype(np.uint8 if as_bytes else np.float32),
        pieces=pieces(),
    )


def encode(models: Models, videos: Array, generators: Sequence[Generator], plan: VaePlan) -> Array:
    """(N, 3, frames, height, width) videos in [-1, 1] → (N, C, F, H, W) latents of the VAE's scale, sampled.

    One after the other, as diffusers does; generators take turns.
    """
    sampled = []
    for video, generator in zip(videos, cycle(generators), strict=False):
        if plan.tiles is None:
            moments = ENCODER.run_whole(models, video[np.newaxis])
        else:
            (moments,) = run_tiles(plan, lambda part: ENCODER.run_whole(models, part), video[np.newaxis])
        sampled.append(sample_posterior(moments, generator))
    return np.concatenate(sampled)


def sample_posterior(moments: Array, generator: Generator) -> Array:
    """(1, 2C, F, H, W) moments, C means and C log-variances → (1, C, F, H, W): mean + exp(clip(logvar, -30, 20) / 2) ε.

    Source: diffusers `DiagonalGaussianDistribution.sample`.
    """
    mean, logvar = np.split(moments, 2, axis=1)
    out = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
    out *= generator.randn(mean.shape)
    out += mean
    return out
