"""The video's VAE of LTX-2: its two graphs, and what the host needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d
from torch import Tensor, nn

from telecine_export.families import activations
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2.checks import check_vae
from telecine_export.families.ltx2.vae_patches import patch_video_vae
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]


class EncoderGraph(nn.Module):
    """(B, 3, 8k+1, 32h, 32w) video in [-1, 1] → (B, C, k+1, h, w) means, of which LTX-2 draws nothing."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = AutoencoderKLLTX2Video.from_config(config).encoder.eval().to(dtype)
        patch_video_vae(self.encoder)
        self.channels = config["latent_channels"]
        self.dtype = dtype

    def forward(self, video: Tensor) -> Tensor:
        return self.encoder(video.to(self.dtype))[:, : self.channels].float()


class DecoderGraph(nn.Module):
    """(B, C, F, H, W) latents of the VAE's scale → (B, 3, 8F-7, 32H, 32W) video in [-1, 1]."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = AutoencoderKLLTX2Video.from_config(config).decoder.eval().to(dtype)
        patch_video_vae(self.decoder)
        self.dtype = dtype

    def forward(self, latents: Tensor, timestep: Tensor | None = None) -> Tensor:
        temb = None if timestep is None else timestep.to(self.dtype)
        return self.decoder(latents.to(self.dtype), temb).float()


def vae_config(source: Source) -> dict[str, Any]:
    return complete(AutoencoderKLLTX2Video, source.config("vae"))


def encoder_spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or one without a graph contract.
    """
    config = vae_config(source)
    check_vae(source.component("vae").origin, config, compression_ratios(config))
    return encoder_graph(config)


def decoder_spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: as `encoder_spec`.
    """
    config = vae_config(source)
    check_vae(source.component("vae").origin, config, compression_ratios(config))
    return decoder_graph(config)


def encoder_graph(config: Config) -> GraphSpec:
    """The graph of a complete configuration."""
    temporal, spatial = compression_ratios(config)
    frames = f"{temporal}*latent_frames-{temporal - 1}"
    return GraphSpec(
        component="vae_encoder",
        build=lambda dtype: EncoderGraph(config, dtype),
        # At least two latents along every axis: torch.export takes a 1 for a constant.
        sample={"video": torch.zeros(2, 3, 2 * temporal + 1, 2 * spatial, 3 * spatial)},
        axes={"video": {0: "batch", 2: frames, 3: f"{spatial}*latent_height", 4: f"{spatial}*latent_width"}},
        output="means",
        output_shape=("batch", config["latent_channels"], "latent_frames", "latent_height", "latent_width"),
        checkpoint="vae",
    )


def decoder_graph(config: Config) -> GraphSpec:
    """The graph of a complete configuration. A decoder that pads by reflection takes at least 2 latents a side."""
    temporal, spatial = compression_ratios(config)
    sample = {"latents": torch.zeros(2, config["latent_channels"], 3, 4, 5)}
    axes: dict[str, dict[int, str]] = {
        "latents": {0: "batch", 2: "latent_frames", 3: "latent_height", 4: "latent_width"}
    }
    if config["timestep_conditioning"]:
        sample["timestep"], axes["timestep"] = torch.zeros(2), {0: "batch"}
    frames = f"{temporal}*latent_frames-{temporal - 1}"
    return GraphSpec(
        component="vae_decoder",
        build=lambda dtype: DecoderGraph(config, dtype),
        sample=sample,
        axes=axes,
        output="video",
        output_shape=("batch", 3, frames, f"{spatial}*latent_height", f"{spatial}*latent_width"),
        checkpoint="vae",
    )


def compression_ratios(config: Config) -> tuple[int, int]:
    """(temporal, spatial) pixels per latent, as AutoencoderKLLTX2Video has them."""
    halvings = 2 ** sum(config["spatio_temporal_scaling"])
    temporal = config["temporal_compression_ratio"] or config["patch_size_t"] * halvings
    spatial = config["spatial_compression_ratio"] or config["patch_size"] * halvings
    return temporal, spatial


def widest_activations(config: Config) -> dict[str, float]:
    """Values of the largest activation of each half of the VAE, per pixel of the video."""
    with torch.device("meta"):
        model: Any = AutoencoderKLLTX2Video.from_config(config).eval()
    return activations.widest_activations(
        model, LTX2VideoCausalConv3d, latent_channels=config["latent_channels"], ratios=compression_ratios(config)
    )


def least_sides(config: Config) -> dict[str, int]:
    """Latents a side that each half of the VAE takes at the least: of a single one, a mirror image has no pixel."""
    modes = {"vae_encoder": "encoder_spatial_padding_mode", "vae_decoder": "decoder_spatial_padding_mode"}
    return {half: 2 if config[mode] == "reflect" else 1 for half, mode in modes.items()}


def host(source: Source) -> dict[str, Any]:
    """What the NumPy side needs: ratios, statistics of latents, whether the decoder takes a timestep."""
    config = vae_config(source)
    temporal, spatial = compression_ratios(config)
    with source.checkpoint("vae") as weights:
        statistics = {name: weights.load(name).float().tolist() for name in ("latents_mean", "latents_std")}
    return {
        "temporal_ratio": temporal,
        "spatial_ratio": spatial,
        "latent_channels": config["latent_channels"],
        "scaling_factor": config["scaling_factor"],
        "timestep_conditioning": config["timestep_conditioning"],
        "widest_activations": widest_activations(config),
        "least_sides": least_sides(config),
        **statistics,
    }
