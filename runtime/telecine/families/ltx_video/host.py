"""What the manifest tells the host math of one LTX-Video model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError
from telecine.latents import denormalize, normalize
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig
from telecine.shapes import Grid
from telecine.tiling import Footprint
from telecine.upsampling import UpsamplerFactors, required

Array = npt.NDArray[np.float32]


class NoiseLevel(NamedTuple):
    """Maps that the decoder wants at one level, as its input `noise_{scale}`: `scale` values per latent on a side."""

    scale: int
    maps: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """Ratios, latent statistics, schedule, RoPE frequencies and upsampler of one model.

    `decoder_noise`: in the order in which the decoder of diffusers draws; empty where it draws none. `encoder` and
    `decoder`: what running the halves of the VAE takes.
    """

    grid: Grid
    latent_channels: int
    text_channels: int
    transformer_blocks: int
    timestep_conditioning: bool
    decoder_noise: tuple[NoiseLevel, ...]
    encoder: Footprint
    decoder: Footprint
    latents_mean: Array
    latents_std: Array
    scaling_factor: float
    rope_frequencies: Array
    scheduler: FlowMatchEulerConfig
    upsampler: UpsamplerFactors | None = None

    @classmethod
    def parse(cls, host: Mapping[str, Any]) -> Host:
        """
        Raises:
            BundleError: a field is missing, or the scheduler is one that telecine does not have.
        """
        try:
            return cls(
                grid=Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"]),
                latent_channels=host["latent_channels"],
                text_channels=host["text_channels"],
                transformer_blocks=host["transformer_blocks"],
                timestep_conditioning=host["timestep_conditioning"],
                decoder_noise=tuple(NoiseLevel(**level) for level in host["decoder_noise"]),
                encoder=Footprint.encoder(host["widest_activations"]["vae_encoder"]),
                decoder=Footprint.decoder(host["widest_activations"]["vae_decoder"]),
                latents_mean=np.array(host["latents_mean"], dtype=np.float32),
                latents_std=np.array(host["latents_std"], dtype=np.float32),
                scaling_factor=host["scaling_factor"],
                rope_frequencies=np.array(host["rope_frequencies"], dtype=np.float32),
                scheduler=FlowMatchEulerConfig.from_dict(host["scheduler"]),
                upsampler=UpsamplerFactors.parse(host.get("upsampler")),
            )
        except KeyError as error:
            raise BundleError(
                f"the manifest's host configuration has no {error}",
                expected="an LTX-Video bundle of this telecine",
                fix="Export the bundle again.",
            ) from error

    def denormalize(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents of the transformer's scale, brought to the VAE's."""
        return denormalize(latents, self.latents_mean, self.latents_std, self.scaling_factor)

    def to_decoder(self) -> tuple[Array, Array]:
        """(C,) scale and (C,) shift of `denormalize`, as the graph `decoder_latents` takes them."""
        return self.latents_std / np.float32(self.scaling_factor), self.latents_mean

    def normalize(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents of the VAE's scale, brought to the transformer's."""
        return normalize(latents, self.latents_mean, self.latents_std, self.scaling_factor)

    def require_upsampler(self) -> UpsamplerFactors:
        """
        Raises:
            BundleError: the bundle has no latent upsampler.
        """
        return required(self.upsampler)
