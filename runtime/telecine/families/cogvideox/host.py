"""What the manifest tells the host math of one CogVideoX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError
from telecine.families.cogvideox.positions import Positions, Rope, Sincos
from telecine.schedulers.cogvideox import CogVideoXSchedulerConfig
from telecine.shapes import Grid

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """Ratios, schedule, positions and chunks of one model.

    `image_channels` of the transformer's input are an image's latents: 0 where it takes none. `text_length` is the
    only one of a model whose learned positions are of its text too. `ofs` is what a model of 1.5 is told beside the
    timestep. `encoder_widest` and `decoder_widest`: values of a half's largest activation in its largest chunk, for
    each latent of a picture. `tile` is the (height, width) of diffusers' VAE tiles in pixels.
    """

    grid: Grid
    latent_channels: int
    image_channels: int
    text_channels: int
    text_length: int | None
    scaling_factor: float
    invert_scale_latents: bool
    positions: Positions
    ofs: float | None
    encoder_widest: float
    decoder_widest: float
    tile: tuple[int, int]
    scheduler: CogVideoXSchedulerConfig

    @classmethod
    def parse(cls, host: Mapping[str, Any]) -> Host:
        """
        Raises:
            BundleError: a field is missing, or the scheduler is one that telecine does not have.
        """
        try:
            patch, patch_t = host["patch_size"], host["patch_size_t"]
            return cls(
                grid=Grid(
                    spatial=host["spatial_ratio"],
                    temporal=host["temporal_ratio"],
                    patch=patch,
                    patch_t=patch_t or 1,
                    chunked=True,
                ),
                latent_channels=host["latent_channels"],
                image_channels=host["image_channels"],
                text_channels=host["text_channels"],
                text_length=host["text_length"] if host["positions"].get("table") else None,
                scaling_factor=host["scaling_factor"],
                invert_scale_latents=host["invert_scale_latents"],
                positions=make_positions(host["positions"]),
                ofs=host["ofs"],
                encoder_widest=host["widest_activations"]["vae_encoder"],
                decoder_widest=host["widest_activations"]["vae_decoder"],
                tile=(host["vae_tile"]["height"], host["vae_tile"]["width"]),
                scheduler=CogVideoXSchedulerConfig.from_dict(host["scheduler"]),
            )
        except KeyError as error:
            raise BundleError(
                f"the manifest's host configuration has no {error}",
                expected="a CogVideoX bundle of this telecine",
                fix="Export the bundle again.",
            ) from error

    def denormalize(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents of the transformer's scale, brought to the VAE's."""
        return np.multiply(latents, np.float32(1 / self.scaling_factor), dtype=np.float32)

    def to_decoder(self) -> tuple[Array, Array]:
        """(C,) scale and (C,) shift of `denormalize`, as the graph `decoder_latents` takes them."""
        scale = np.full(self.latent_channels, 1 / self.scaling_factor, np.float32)
        return scale, np.zeros_like(scale)

    def normalize(self, latents: Array, *, image: bool = False) -> Array:
        """(B, C, F, H, W) latents of the VAE's scale, brought to the transformer's.

        Models of 1.5 were trained on images whose scale is inverted (`invert_scale_latents`).
        """
        inverted = image and self.invert_scale_latents
        factor = 1 / self.scaling_factor if inverted else self.scaling_factor
        return np.multiply(latents, np.float32(factor), dtype=np.float32)


def make_positions(told: Mapping[str, Any]) -> Positions:
    """Of the manifest's `positions`."""
    if told["kind"] == "sincos":
        return Sincos(
            width=told["width"],
            spatial_scale=told["spatial_interpolation_scale"],
            temporal_scale=told["temporal_interpolation_scale"],
        )
    frequencies = told["rope_frequencies"]
    return Rope(
        rows=told["rows"],
        columns=told["columns"],
        stretched=told["stretched"],
        frame_frequencies=np.array(frequencies["frames"], np.float32),
        side_frequencies=np.array(frequencies["sides"], np.float32),
        table_frames=told["table"] and told["table"]["frames"],
    )
