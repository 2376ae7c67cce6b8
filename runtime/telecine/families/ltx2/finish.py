"""What becomes of denoised tokens: latents as diffusers returns them, or as the two decoders take them.

The graphs that follow (B videos, S latents of the sound; float32):

| component | inputs | output |
|---|---|---|
| `vae_decoder` | `latents` (B, C, F, H, W), `timestep` (B) where it takes one | `video` (B, 3, 8(F-1)+1, 32H, 32W) |
| `audio_vae_decoder` | `latents` (B, C, S, M) | `mel` (B, channels, 4S-3, mel bins) |
| `vocoder` | `mel` | `audio` (B, channels, samples) in [-1, 1], with bandwidth extension from 2.3 on |
| `latent_upsampler` | `latents` (B, C, F, H, W) of the decoder's scale, as these pipelines return them | `latents` |
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.families.ltx2.host import Host
from telecine.latents import mix_decode_noise, unpack
from telecine.noise import Generator, randn
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]


def clip(tokens: Array, latent: LatentShape) -> Array:
    """(B, T + keyframes, C) tokens → (B, C, F, H, W) normalised latents of the clip, without the keyframes."""
    return unpack(tokens[:, : latent.tokens], latent)


def for_decoder(host: Host, latents: Array, generators: list[Generator], noise_scale: Array) -> Array:
    """(B, C, F, H, W) normalised latents → those that the VAE's decoder takes.

    A decoder with timestep conditioning gets them with (B,) shares of noise, mixed in before they are denormalised.

    Source: diffusers `LTX2Pipeline.__call__`, after the denoising loop.
    """
    if host.timestep_conditioning:
        latents = mix_decode_noise(latents, randn(generators, latents.shape), noise_scale)
    return host.denormalize(latents)
