"""What becomes of denoised tokens: latents as diffusers returns them, or as the two decoders take them."""

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
    return unpack(np.ascontiguousarray(tokens[:, : latent.tokens]), latent)


def for_decoder(host: Host, latents: Array, generators: list[Generator], noise_scale: Array) -> Array:
    """(B, C, F, H, W) normalised latents → those that the VAE's decoder takes.

    A decoder with timestep conditioning gets them with (B,) shares of noise, mixed in before they are denormalised.

    Source: diffusers `LTX2Pipeline.__call__`, after the denoising loop.
    """
    if host.timestep_conditioning:
        latents = mix_decode_noise(latents, randn(generators, latents.shape), noise_scale)
    return host.denormalize(latents)
