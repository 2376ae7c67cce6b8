"""LTX-2's latent upsamplers: their graph, and what the host needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2.vae import vae_config
from telecine_export.families.upscaler import LATENT_UPSAMPLER
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]

COMPONENT = LATENT_UPSAMPLER
GROUPS = 32  # of every GroupNorm in it
SCALE = 2.0  # the only one of the rational resampler's that sizes of latents are planned for


class LatentUpsamplerGraph(nn.Module):
    """(B, C, F, H, W) latents of the decoder's scale → the same at 2 H and 2 W, at 2 F - 1, or both."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.upsampler = LTX2LatentUpsamplerModel.from_config(config).eval().to(dtype)
        self.dtype = dtype

    def forward(self, latents: Tensor) -> Tensor:
        return self.upsampler(latents.to(self.dtype)).float()


def upsampler_config(source: Source) -> dict[str, Any]:
    return complete(LTX2LatentUpsamplerModel, source.config(COMPONENT))


def spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or latents of another VAE.
    """
    config, channels = upsampler_config(source), vae_config(source)["latent_channels"]
    check(source.component(COMPONENT).origin, config, channels)
    sides = host(source)
    frames = "2*latent_frames-1" if sides["temporal_factor"] == 2 else "latent_frames"
    scale = "2*" if sides["spatial_factor"] == 2 else ""
    return GraphSpec(
        component=COMPONENT,
        build=lambda dtype: LatentUpsamplerGraph(config, dtype),
        sample={"latents": torch.zeros(2, channels, 3, 4, 5)},
        axes={"latents": {0: "batch", 2: "latent_frames", 3: "latent_height", 4: "latent_width"}},
        # diffusers' name for it: a graph's input and output cannot have one name.
        output="latents_upsampled",
        output_shape=("batch", channels, frames, f"{scale}latent_height", f"{scale}latent_width"),
        checkpoint=COMPONENT,
        rename=lambda name: name.removeprefix("upsampler."),
    )


def host(source: Source) -> dict[str, int]:
    """How many times larger it makes latents: what sizes are planned by."""
    config = upsampler_config(source)
    return {
        "spatial_factor": 2 if config["spatial_upsample"] else 1,
        "temporal_factor": 2 if config["temporal_upsample"] else 1,
    }


def doubles_sides(source: Source) -> bool:
    """Whether it serves two stages: it doubles height and width, and no more."""
    return host(source) == {"spatial_factor": 2, "temporal_factor": 1}


def check(origin: Path, config: Config, latent_channels: int) -> None:
    """
    Raises:
        SourceError: as `spec`.
    """
    checks = (
        (
            config["in_channels"] == latent_channels,
            f"in_channels {config['in_channels']}",
            f"{latent_channels}, as the VAE's: take the upscaler that was made for this model",
        ),
        (
            config["spatial_upsample"] or config["temporal_upsample"],
            "neither spatial_upsample nor temporal_upsample",
            "one of them, or both",
        ),
        (
            config["dims"] == 3 or (config["dims"] == 2 and not config["temporal_upsample"]),
            f"dims {config['dims']}{' and temporal_upsample' if config['temporal_upsample'] else ''}",
            "dims 3, or dims 2 (each frame by itself) with spatial_upsample alone, as diffusers can run",
        ),
        (
            not config["use_rational_resampler"] or config["rational_spatial_scale"] == SCALE,
            f"rational_spatial_scale {config['rational_spatial_scale']}",
            f"{SCALE:g}, as every published one has",
        ),
        (
            config["mid_channels"] % GROUPS == 0,
            f"mid_channels {config['mid_channels']}",
            f"a multiple of {GROUPS}, the groups that it normalises",
        ),
    )
    for right, got, expected in checks:
        if not right:
            raise SourceError(f"{origin} has {got}", expected=expected, fix="This upscaler cannot be exported.")
