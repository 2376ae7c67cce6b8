"""From pixels to latents of the transformer's scale, by the video's VAE."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.families.ltx2.host import Host
from telecine.families.vae import largest_tile
from telecine.shapes import VideoShape
from telecine.tiling import TilingOptions, plan_encoder

Array = npt.NDArray[np.float32]


def encode_means(models: Models, host: Host, videos: Array, options: TilingOptions) -> Array:
    """(N, 3, 8k+1, 32h, 32w) videos in [-1, 1] → (N, C, k+1, h, w) latents of the VAE's scale: the means.

    One after the other, as diffusers does, which draws nothing here.

    Raises:
        RequestError: a memory limit that encoding cannot meet, or tiles that cannot be.
        EngineError: an engine takes no such tiles.
    """
    session = models.session("vae_encoder")
    frames, height, width = videos.shape[2:]
    latent = VideoShape(num_frames=frames, height=height, width=width).latent(host.grid)
    largest = largest_tile(models, "vae_encoder")
    plan = plan_encoder(options, latent, host.grid, host.encoder, videos=1, largest=largest)
    encoded = [
        np.concatenate(list(plan.run(lambda part, _: session.run({"video": part})["means"], video)), axis=2)
        for video in videos[:, np.newaxis]
    ]
    return np.concatenate(encoded)
