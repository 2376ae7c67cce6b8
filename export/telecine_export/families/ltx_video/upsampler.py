"""The latent upsamplers of LTX-Video 0.9.7 and later: their graph, what the host needs of them, their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine_export.families.upscaler import LATENT_UPSAMPLER
from telecine_export.graphs import GraphSpec

Config = Mapping[str, Any]

GROUPS = 32  # of every GroupNorm in it


# The two-stage recipes of diffusers' documentation, for models of 0.9.7 and later: a low resolution first, upsampled,
# then a short second denoising. Neither distilled models nor 0.9.8 have a configuration of their own to be told by.
_SHARED: Mapping[str, Any] = {
    "width": 1152, "height": 768, "num_frames": 161, "guidance_rescale": 0.7, "image_cond_noise_scale": 0.025,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip
_DISTILLED: Mapping[str, Any] = {
    **_SHARED, "guidance_scale": 1.0, "image_cond_noise_scale": 0.0,
    "timesteps": [1000, 993, 987, 981, 975, 909, 725, 0.03],
}  # fmt: skip
_DISTILLED_SECOND: Mapping[str, Any] = {
    "downscale_factor": 2 / 3, "adain_factor": 1.0,
    "denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0],
}  # fmt: skip
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "two-stage": {
        **_SHARED, "guidance_scale": 5.0, "num_inference_steps": 30,
        "second_stage": {"downscale_factor": 2 / 3, "denoise_strength": 0.4, "num_inference_steps": 10},
    },
    "two-stage-distilled": {**_DISTILLED, "second_stage": _DISTILLED_SECOND},
    "two-stage-distilled-0.9.8": {
        **_DISTILLED, "second_stage": {**_DISTILLED_SECOND, "tone_map_compression_ratio": 0.6},
    },
}  # fmt: skip


class LatentUpsamplerGraph(nn.Module):
    """(B, C, F, H, W) denormalised latents → the same at 2 H and 2 W, at 2 F - 1, or both."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.upsampler = LTXLatentUpsamplerModel.from_config(config).eval().to(dtype)
        self.dtype = dtype

    def forward(self, latents: Tensor) -> Tensor:
        return self.upsampler(latents.to(self.dtype)).float()


def latent_upsampler(config: Config, *, latent_channels: int) -> GraphSpec:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or latents of another VAE.
    """
    _check(config, latent_channels)
    sides = host(config)
    frames = "2*latent_frames-1" if sides["temporal_factor"] == 2 else "latent_frames"
    scale = "2*" if sides["spatial_factor"] == 2 else ""
    return GraphSpec(
        component=LATENT_UPSAMPLER,
        build=lambda dtype: LatentUpsamplerGraph(config, dtype),
        sample={"latents": torch.zeros(2, latent_channels, 3, 4, 5)},
        axes={"latents": {0: "batch", 2: "latent_frames", 3: "latent_height", 4: "latent_width"}},
        # diffusers' name for it: a graph's input and output cannot have one name.
        output="latents_upsampled",
        output_shape=("batch", latent_channels, frames, f"{scale}latent_height", f"{scale}latent_width"),
        checkpoint=LATENT_UPSAMPLER,
        rename=lambda name: name.removeprefix("upsampler."),
    )


def recipes(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """Presets of `generate` that this upsampler serves: those of a second stage at twice the size."""
    return RECIPES if config["spatial_upsample"] and not config["temporal_upsample"] else {}


def host(config: Config) -> dict[str, int]:
    """How many times larger it makes latents: what sizes are planned by."""
    return {
        "spatial_factor": 2 if config["spatial_upsample"] else 1,
        "temporal_factor": 2 if config["temporal_upsample"] else 1,
    }


def _check(config: Config, latent_channels: int) -> None:
    if config["in_channels"] != latent_channels:
        raise SourceError(
            f"an upscaler of latents with {config['in_channels']} channels",
            expected=f"{latent_channels}, as the VAE's",
            fix="Take the upscaler that was made for this model.",
        )
    if not (config["spatial_upsample"] or config["temporal_upsample"]):
        raise SourceError(
            "an upscaler that upsamples neither space nor time",
            expected="spatial_upsample, temporal_upsample or both",
            fix="Download it again: its config.json is damaged.",
        )
    if config["dims"] not in (2, 3) or (config["dims"] == 2 and config["temporal_upsample"]):
        over_time = " and temporal_upsample" if config["temporal_upsample"] else ""
        raise SourceError(
            f"an upscaler with dims {config['dims']}{over_time}",
            expected="dims 3, or dims 2 (each frame by itself) with spatial_upsample alone, as diffusers can run",
            fix="This upscaler cannot be exported.",
        )
    if config["mid_channels"] % GROUPS:
        raise SourceError(
            f"an upscaler with {config['mid_channels']} mid_channels",
            expected=f"a multiple of {GROUPS}, the groups that it normalises",
            fix="Download it again: its config.json is damaged.",
        )
