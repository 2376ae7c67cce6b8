"""From latents to frames: the VAE's decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.families.ltx_video.host import Host
from telecine.latents import mix_decode_noise
from telecine.noise import Generator, randn
from telecine.pixels import to_uint8, to_unit_range
from telecine.request import Request
from telecine.upscale_request import UpscaleRequest

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeSettings:
    """(B,) `timestep` and (B,) `noise_scale` of a decoder with timestep conditioning."""

    timestep: Array
    noise_scale: Array

    @classmethod
    def of(cls, request: Request | UpscaleRequest) -> DecodeSettings:
        """The scale is the timestep where none is given.

        Raises:
            RequestError: not finite numbers, or another count than of videos.
        """
        timestep = request.per_video("decode_timestep", request.decode_timestep)
        if request.decode_noise_scale is None:
            return cls(timestep, timestep)
        return cls(timestep, request.per_video("decode_noise_scale", request.decode_noise_scale))


def decode(
    models: Models, host: Host, latents: Array, settings: DecodeSettings, generators: list[Generator], output_type: str
) -> npt.NDArray[Any]:
    """(B, C, F, H, W) normalised latents to (B, num_frames, height, width, 3) frames, float32 or uint8."""
    return decode_denormalized(models, host, host.denormalize(latents), settings, generators, output_type)


def decode_denormalized(
    models: Models, host: Host, latents: Array, settings: DecodeSettings, generators: list[Generator], output_type: str
) -> npt.NDArray[Any]:
    """As `decode`, of latents at the VAE's own scale."""
    feeds = {"latents": latents}
    if host.timestep_conditioning:
        noise = randn(generators, latents.shape)
        feeds["latents"] = mix_decode_noise(latents, noise, settings.noise_scale)
        feeds["timestep"] = settings.timestep
    frames = to_unit_range(models.session("vae_decoder").run(feeds)["video"])
    return to_uint8(frames) if output_type == "uint8" else frames
