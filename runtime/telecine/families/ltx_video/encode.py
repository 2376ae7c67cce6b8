"""From frames to latents: the VAE's encoder, and draws from its posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.families.ltx_video.host import Host
from telecine.latents import normalize
from telecine.noise import Generator

Array = npt.NDArray[np.float32]


def encode_video(models: Models, host: Host, video: Array, generators: Sequence[Generator]) -> Array:
    """(B, 3, num_frames, height, width) videos in [-1, 1] to (B, C, F, H, W) normalised latents.

    One generator draws for all videos in turn, or each has its own.

    Source: diffusers `LTXLatentUpsamplePipeline.prepare_latents`.
    """
    encoder = models.session("vae_encoder")
    latents = []
    for index in range(len(video)):  # one at a time, as diffusers: the encoder needs gigabytes for each
        moments = encoder.run({"video": video[index : index + 1]})["moments"]
        latents.append(sample_posterior(moments, generators[index if len(generators) > 1 else 0]))
    # With no scaling factor, wherever diffusers encodes for LTX-Video; every published VAE has 1.
    return normalize(np.concatenate(latents), host.latents_mean, host.latents_std, 1.0)


def sample_posterior(moments: Array, generator: Generator) -> Array:
    """(B, C + 1, F, H, W) moments, C means and the log-variance that they share, to (B, C, F, H, W) latents.

    Source: diffusers `DiagonalGaussianDistribution.sample`.
    """
    mean, log_variance = moments[:, :-1], moments[:, -1:]
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    out = generator.randn(mean.shape)
    out *= deviation
    out += mean
    return out
