"""What the manifest tells the host math of one LTX-2 model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError
from telecine.families.ltx2 import audio
from telecine.families.ltx2.audio import AudioGrid
from telecine.families.ltx2.positions import Rope
from telecine.families.ltx2.text import Connectors
from telecine.latents import denormalize, normalize
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig
from telecine.shapes import Grid
from telecine.tiling import Footprint
from telecine.upsampling import UpsamplerFactors, required

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """Ratios, statistics, schedules, positions and connectors of one model.

    `audio_mean` and `audio_std` (C * M,) are of packed latents. `text_channels` are those of the text encoder's output,
    `text_heads` are of its attention.
    `perturbed_attention` says whether spatio-temporal guidance acts. `encoder` and `decoder`: what running the halves
    of the video's VAE takes; `text_widest`, `audio_widest` and `vocoder_widest`: values of the largest activation for a
    token of text, for a latent of the sound along time, and for a frame of its spectrogram.
    """

    grid: Grid
    latent_channels: int
    latents_mean: Array
    latents_std: Array
    scaling_factor: float
    timestep_conditioning: bool
    audio_grid: AudioGrid
    audio_mean: Array
    audio_std: Array
    text_channels: int
    text_heads: int
    connectors: Connectors
    transformer_blocks: int
    perturbed_attention: bool
    rope: Rope
    scheduler: FlowMatchEulerConfig
    audio_scheduler: FlowMatchEulerConfig
    encoder: Footprint
    decoder: Footprint
    text_widest: float
    audio_widest: float
    vocoder_widest: float
    upsampler: UpsamplerFactors | None = None

    @classmethod
    def parse(cls, host: Mapping[str, Any]) -> Host:
        """
        Raises:
            BundleError: a field is missing, or the scheduler is one that telecine does not have.
        """
        try:
            scheduler = FlowMatchEulerConfig.from_dict(host["scheduler"])
            of_audio = host["audio_scheduler"]  # LTX2ConditionPipeline may have one; null: the video's
            widest, least = host["widest_activations"], host["least_sides"]
            parsed = cls(
                grid=Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"]),
                latent_channels=host["latent_channels"],
                latents_mean=_array(host["latents_mean"]),
                latents_std=_array(host["latents_std"]),
                scaling_factor=host["scaling_factor"],
                timestep_conditioning=host["timestep_conditioning"],
                audio_grid=AudioGrid(**host["audio"]),
                audio_mean=_array(host["audio_latents_mean"]),
                audio_std=_array(host["audio_latents_std"]),
                text_channels=host["text_channels"],
                text_heads=host["text_heads"],
                connectors=_connectors(host["connectors"]),
                transformer_blocks=host["transformer_blocks"],
                perturbed_attention=host["perturbed_attention"],
                rope=parse_rope(host["rope"]),
                scheduler=scheduler,
                audio_scheduler=scheduler if of_audio is None else FlowMatchEulerConfig.from_dict(of_audio),
                encoder=Footprint.encoder(widest["vae_encoder"], least["vae_encoder"]),
                decoder=Footprint.decoder(widest["vae_decoder"], least["vae_decoder"]),
                text_widest=widest["text_encoder"],
                audio_widest=widest["audio_vae_decoder"],
                vocoder_widest=widest["vocoder"],
                upsampler=UpsamplerFactors.parse(host.get("upsampler")),
            )
        except KeyError as error:
            raise BundleError(
                f"the manifest's host configuration has no {error}",
                expected="an LTX-2 bundle of this telecine",
                fix="Export the bundle again.",
            ) from error
        for config in (parsed.scheduler, parsed.audio_scheduler):
            if config.stochastic_sampling:
                raise BundleError(
                    "the scheduler samples stochastically",
                    expected="plain steps: diffusers draws the noise of LTX-2's from no seed of the request",
                    fix="Export a source whose scheduler has stochastic_sampling false.",
                )
        return parsed

    def normalize(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents that a caller passed, of the VAE's scale, brought to the transformer's."""
        return normalize(latents, self.latents_mean, self.latents_std, self.scaling_factor)

    def normalize_encoded(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents of the VAE's encoder, brought to the transformer's scale.

        diffusers leaves the scaling factor out here; every release has 1.
        """
        return normalize(latents, self.latents_mean, self.latents_std, 1.0)

    def denormalize(self, latents: Array) -> Array:
        """(B, C, F, H, W) latents of the transformer's scale, brought to the VAE's."""
        return denormalize(latents, self.latents_mean, self.latents_std, self.scaling_factor)

    def require_upsampler(self) -> UpsamplerFactors:
        """
        Raises:
            BundleError: the bundle has no latent upsampler.
        """
        return required(self.upsampler)

    def normalize_audio(self, latents: Array) -> Array:
        """(B, C, S, M) latents of the audio VAE → (B, S, C * M) tokens of the transformer's scale."""
        return audio.normalize(audio.pack(latents), self.audio_mean, self.audio_std)

    def denormalize_audio(self, tokens: Array) -> Array:
        """(B, S, C * M) tokens of the transformer's scale → (B, C, S, M) latents of the audio VAE."""
        return audio.unpack(audio.denormalize(tokens, self.audio_mean, self.audio_std), self.audio_grid.bands)


def _connectors(told: Mapping[str, Any]) -> Connectors:
    return Connectors(
        registers=told["registers"],
        base_length=told["base_length"],
        frequencies=_array(told["frequencies"]),
        audio_frequencies=_array(told["audio_frequencies"]),
    )


def parse_rope(told: Mapping[str, Any]) -> Rope:
    """What the manifest's `rope` says of positions."""
    frame, row, column = told["scale_factors"]
    seconds, height, width = told["extent"]
    return Rope(
        scale_factors=(frame, row, column),
        extent=(seconds, height, width),
        causal_offset=told["causal_offset"],
        audio_scale_factor=told["audio_scale_factor"],
        audio_sampling_rate=told["audio_sampling_rate"],
        audio_hop_length=told["audio_hop_length"],
        audio_extent=told["audio_extent"],
        frequencies=_array(told["frequencies"]),
        audio_frequencies=_array(told["audio_frequencies"]),
        cross_frequencies=_array(told["cross_frequencies"]),
    )


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float32)
