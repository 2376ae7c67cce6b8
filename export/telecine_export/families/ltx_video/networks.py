"""LTX-Video 0.9.x: its graphs, and the configuration that its host math needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine_export.families import activations
from telecine_export.families.defaults import complete
from telecine_export.families.ltx_video.patches import patch_ltx_noise, patch_ltx_transformer, patch_ltx_vae
from telecine_export.families.ltx_video.upsampler import host as upsampler_host
from telecine_export.families.ltx_video.upsampler import latent_upsampler, recipes
from telecine_export.families.t5 import text_encoder
from telecine_export.families.upscaler import LATENT_UPSAMPLER
from telecine_export.families.weightless import decoder_latents, denoise_step, uint8_frames
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]


class TransformerGraph(nn.Module):
    """(B, T, C) packed latents → (B, T, C) velocity."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.transformer = LTXVideoTransformer3DModel.from_config(config).eval().to(dtype)
        self.stg = patch_ltx_transformer(self.transformer)
        self.dtype = dtype

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        rope_index: Tensor,
        stg_mode: Tensor,
    ) -> Tensor:
        self.stg.modes = stg_mode
        (velocity,) = self.transformer(
            hidden_states=hidden_states.to(self.dtype),
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            timestep=timestep,
            encoder_attention_mask=encoder_attention_mask,
            video_coords=(rope_cos, rope_sin, rope_index),
            return_dict=False,
        )
        return velocity.float()


class VaeEncoderGraph(nn.Module):
    """(B, 3, 8k+1, 32h, 32w) video in [-1, 1] → (B, C + 1, k+1, h, w) moments: C means, one shared log-variance."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = AutoencoderKLLTXVideo.from_config(config).encoder.eval().to(dtype)
        patch_ltx_vae(self.encoder)
        self.channels = config["latent_channels"] + 1
        self.dtype = dtype

    def forward(self, video: Tensor) -> Tensor:
        # diffusers repeats the one log-variance C times; the host broadcasts it.
        return self.encoder(video.to(self.dtype))[:, : self.channels].float()


# Values per latent along a side at the levels of a decoder that upsamples three times, as every published one does.
NOISE_SCALES = (1, 2, 4, 8)


class VaeDecoderGraph(nn.Module):
    """(B, C, F, H, W) denormalised latents → (B, 3, 8F-7, 32H, 32W) video in [-1, 1].

    A decoder that injects noise takes it as `noise_S` (maps, S*H, S*W), one input a level: the maps that diffusers
    draws where its features have S by S values per latent, in the order of the draws. All videos share them.
    """

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = AutoencoderKLLTXVideo.from_config(config).decoder.eval().to(dtype)
        patch_ltx_vae(self.decoder)
        self.maps = patch_ltx_noise(self.decoder)
        self.dtype = dtype

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | None = None,
        noise_1: Tensor | None = None,
        noise_2: Tensor | None = None,
        noise_4: Tensor | None = None,
        noise_8: Tensor | None = None,
    ) -> Tensor:
        temb = None if timestep is None else timestep.to(self.dtype)
        self.maps.levels = dict(zip(NOISE_SCALES, (noise_1, noise_2, noise_4, noise_8), strict=True))
        return self.decoder(latents.to(self.dtype), temb).float()


# Settings that diffusers' documentation recommends for each variant; sizes are on the grid.
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "0.9.0": {"width": 704, "height": 480, "num_frames": 161, "num_inference_steps": 50},
    "0.9.1": {
        "width": 768, "height": 512, "num_frames": 161, "num_inference_steps": 50,
        "decode_timestep": 0.03, "decode_noise_scale": 0.025,
    },
    "0.9.5": {
        "width": 768, "height": 512, "num_frames": 161, "num_inference_steps": 40,
        "decode_timestep": 0.05, "decode_noise_scale": 0.025,
    },
    "0.9.7": {
        "width": 768, "height": 512, "num_frames": 121, "num_inference_steps": 30, "guidance_scale": 5.0,
        "decode_timestep": 0.05, "decode_noise_scale": 0.025,
    },
}  # fmt: skip

# What Lightricks' own configurations ask of the models that are not distilled, by the number of transformer blocks:
# configs/ltxv-2b-*.yaml, and the first pass of ltxv-13b-*-dev.yaml over all of its steps (its second pass ends it
# otherwise). A `rescaling_scale` of 1 means none there: 0 here.
OFFICIAL_SIZE = {"width": 1216, "height": 704, "num_frames": 121, "frame_rate": 30.0, "max_sequence_length": 256}
OFFICIAL_DECODING = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
OFFICIAL: Mapping[int, Mapping[str, Any]] = {
    28: {
        "num_inference_steps": 40, "guidance_scale": 3.0, "guidance_rescale": 0.7,
        "stg_scale": 1.0, "stg_mode": "attention_values", "stg_blocks": [19],
    },
    48: {
        "num_inference_steps": 30, "cfg_star": True,
        "guidance_sigmas": [1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618],
        "guidance_scale": [1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0],
        "guidance_rescale": [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0],
        "stg_scale": [0.0, 0.0, 4.0, 4.0, 4.0, 2.0, 1.0], "stg_mode": "attention_values",
        "stg_blocks": [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]],
    },
}  # fmt: skip


def variant(source: Source) -> str:
    """The first release with this architecture, told from the configuration and never from a file name."""
    vae = complete(AutoencoderKLLTXVideo, source.config("vae"))
    layers = complete(LTXVideoTransformer3DModel, source.config("transformer"))["num_layers"]
    if any(vae["decoder_inject_noise"]):
        return "0.9.1"
    if "LTXVideo095DownBlock3D" in vae["down_block_types"]:
        return "0.9.7" if layers == 48 else "0.9.5"
    return "0.9.0"


def presets(source: Source) -> dict[str, dict[str, Any]]:
    """Named settings of `generate`: what diffusers' documentation recommends, and what the model's makers use.

    Blocks of "official" are those of the published models: a model with another number of them has no such preset.
    """
    upsampler = _upsampler_config(source)
    named: dict[str, Mapping[str, Any]] = {"recommended": RECOMMENDED[variant(source)]}
    named |= recipes(upsampler) if upsampler else {}
    layers = complete(LTXVideoTransformer3DModel, source.config("transformer"))["num_layers"]
    if layers in OFFICIAL:
        decoding = OFFICIAL_DECODING if source.config("vae").get("timestep_conditioning") else {}
        named["official"] = {**OFFICIAL_SIZE, **OFFICIAL[layers], **decoding}
    return {name: {"negative_prompt": NEGATIVE_PROMPT, **values} for name, values in named.items()}


def graphs(source: Source) -> list[GraphSpec]:
    """The graphs of a pipeline, with both halves of its VAE, that of an upsampler where one is given, and host math.

    Raises:
        SourceError: a configuration that the graph contracts do not cover.
    """
    transformer_config = complete(LTXVideoTransformer3DModel, source.config("transformer"))
    vae_config = complete(AutoencoderKLLTXVideo, source.config("vae"))
    if (transformer_config["patch_size"], transformer_config["patch_size_t"]) != (1, 1):
        raise SourceError(
            f"{source.root}/transformer has patch_size {transformer_config['patch_size']}"
            f" and patch_size_t {transformer_config['patch_size_t']}",
            expected="1 and 1, as every published LTX-Video has",
            fix="This transformer cannot be exported.",
        )
    specs = [
        text_encoder(source.config("text_encoder")),
        transformer(transformer_config),
        vae_encoder(vae_config),
        vae_decoder(vae_config),
    ]
    upsampler = _upsampler_config(source)
    if upsampler:
        specs.append(latent_upsampler(upsampler, latent_channels=vae_config["latent_channels"]))
    # Latents are tokens, (B, F, H, W, C).
    channels, noise = vae_config["latent_channels"], vae_config["timestep_conditioning"]
    return [
        *specs,
        denoise_step(),
        decoder_latents(channels=channels, order=(0, 4, 1, 2, 3), noise=noise),
        uint8_frames(),
    ]


def host(source: Source) -> dict[str, Any]:
    """What the NumPy side needs: ratios, latent statistics, schedule, RoPE frequencies as torch computed them."""
    transformer_config = complete(LTXVideoTransformer3DModel, source.config("transformer"))
    vae_config = complete(AutoencoderKLLTXVideo, source.config("vae"))
    temporal, spatial = compression_ratios(vae_config)
    with source.checkpoint("vae") as vae:
        statistics = {name: vae.load(name).float().tolist() for name in ("latents_mean", "latents_std")}
    upsampler = _upsampler_config(source)
    return {
        "temporal_ratio": temporal,
        "spatial_ratio": spatial,
        "latent_channels": transformer_config["in_channels"],
        "text_channels": transformer_config["caption_channels"],
        "transformer_blocks": transformer_config["num_layers"],
        "timestep_conditioning": vae_config["timestep_conditioning"],
        "decoder_noise": [{"scale": scale, "maps": maps} for scale, maps in decoder_noise(vae_config).items()],
        "widest_activations": widest_activations(vae_config),
        "scaling_factor": vae_config["scaling_factor"],
        **statistics,
        "rope_frequencies": rope_frequencies(transformer_config).tolist(),
        "scheduler": source.config("scheduler"),
        **({"upsampler": upsampler_host(upsampler)} if upsampler else {}),
    }


def _upsampler_config(source: Source) -> dict[str, Any] | None:
    if LATENT_UPSAMPLER not in source.components:
        return None
    return complete(LTXLatentUpsamplerModel, source.config(LATENT_UPSAMPLER))


def transformer(config: Config) -> GraphSpec:
    channels, blocks = config["in_channels"], config["num_layers"]
    frequencies = config["num_attention_heads"] * config["attention_head_dim"] // 6
    batch, tokens, length, positions = 2, 24, 7, 5
    return GraphSpec(
        component="transformer",
        build=lambda dtype: TransformerGraph(config, dtype),
        sample={
            "hidden_states": torch.zeros(batch, tokens, channels),
            "encoder_hidden_states": torch.zeros(batch, length, config["caption_channels"]),
            "encoder_attention_mask": torch.zeros(batch, length),
            "timestep": torch.zeros(batch, tokens),
            "rope_cos": torch.zeros(3, positions, frequencies),
            "rope_sin": torch.zeros(3, positions, frequencies),
            "rope_index": torch.zeros(tokens, 3, dtype=torch.int32),
            "stg_mode": torch.zeros(blocks, batch, dtype=torch.int32),
        },
        axes={
            "hidden_states": {0: "batch", 1: "tokens"},
            "encoder_hidden_states": {0: "batch", 1: "text_length"},
            "encoder_attention_mask": {0: "batch", 1: "text_length"},
            "timestep": {0: "batch", 1: "tokens"},
            "rope_cos": {1: "rope_positions"},
            "rope_sin": {1: "rope_positions"},
            "rope_index": {0: "tokens"},
            "stg_mode": {1: "batch"},
        },
        # One timestep a video, or one a token (frozen conditioning frames): the same graph.
        untied=(("timestep", 1, "timestep_tokens"),),
        output="velocity",
        output_shape=("batch", "tokens", config["out_channels"] or channels),
        checkpoint="transformer",
        rename=lambda name: name.removeprefix("transformer."),
    )


def vae_encoder(config: Config) -> GraphSpec:
    temporal, spatial = compression_ratios(config)
    frames = f"{temporal}*latent_frames-{temporal - 1}"
    return GraphSpec(
        component="vae_encoder",
        build=lambda dtype: VaeEncoderGraph(config, dtype),
        # At least two latents along every axis: torch.export takes a 1 for a constant.
        sample={"video": torch.zeros(2, 3, 2 * temporal + 1, 2 * spatial, 3 * spatial)},
        axes={"video": {0: "batch", 2: frames, 3: f"{spatial}*latent_height", 4: f"{spatial}*latent_width"}},
        output="moments",
        output_shape=(
            "batch", config["latent_channels"] + 1, "latent_frames", "latent_height", "latent_width",
        ),
        checkpoint="vae",
    )  # fmt: skip


def vae_decoder(config: Config) -> GraphSpec:
    temporal, spatial = compression_ratios(config)
    sample = {"latents": torch.zeros(2, config["latent_channels"], 3, 4, 5)}
    axes: dict[str, dict[int, str]] = {
        "latents": {0: "batch", 2: "latent_frames", 3: "latent_height", 4: "latent_width"}
    }
    if config["timestep_conditioning"]:
        sample["timestep"] = torch.zeros(2)
        axes["timestep"] = {0: "batch"}
    for scale, maps in decoder_noise(config).items():
        height, width = (scale * side for side in sample["latents"].shape[3:])
        sample[f"noise_{scale}"] = torch.zeros(maps, height, width)
        axes[f"noise_{scale}"] = {1: f"{scale}*latent_height", 2: f"{scale}*latent_width"}
    frames = f"{temporal}*latent_frames-{temporal - 1}"
    return GraphSpec(
        component="vae_decoder",
        build=lambda dtype: VaeDecoderGraph(config, dtype),
        sample=sample,
        axes=axes,
        output="video",
        output_shape=("batch", 3, frames, f"{spatial}*latent_height", f"{spatial}*latent_width"),
        checkpoint="vae",
    )


def decoder_noise(vae: Config) -> dict[int, int]:
    """How many noise maps the decoder draws at each scale (values of a map per latent along a side), in that order.

    Raises:
        SourceError: a level that the graph has no input for.
    """
    if not any(vae["decoder_inject_noise"]):
        return {}
    with torch.device("meta"):
        decoder = AutoencoderKLLTXVideo.from_config(vae).decoder
    counts = patch_ltx_noise(decoder).counts
    if not set(counts) <= set(NOISE_SCALES):
        raise SourceError(
            f"a VAE whose decoder injects noise at {', '.join(map(str, counts))} values per latent",
            expected=f"some of {', '.join(map(str, NOISE_SCALES))}, as LTX-Video 0.9.1 has",
            fix="This VAE cannot be exported.",
        )
    return counts


def widest_activations(vae: Config) -> dict[str, float]:
    """Values of the largest activation of each half of the VAE, per pixel of the video."""
    with torch.device("meta"):
        model: Any = AutoencoderKLLTXVideo.from_config(vae).eval()
    return activations.widest_activations(
        model, LTXVideoCausalConv3d, latent_channels=vae["latent_channels"], ratios=compression_ratios(vae)
    )


def compression_ratios(vae: Config) -> tuple[int, int]:
    """(temporal, spatial) pixels per latent, as AutoencoderKLLTXVideo derives them."""
    halvings = 2 ** sum(vae["spatio_temporal_scaling"])
    temporal = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * halvings
    spatial = vae.get("spatial_compression_ratio") or vae["patch_size"] * halvings
    return temporal, spatial


def rope_frequencies(transformer: Config) -> Tensor:
    """(K,) float32: LTXVideoRotaryPosEmbed's own expression, so that the last bit is torch's and not NumPy's."""
    inner_dim = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    theta = 10000.0
    exponents = torch.linspace(math.log(1.0, theta), math.log(theta, theta), inner_dim // 6, dtype=torch.float32)
    return theta**exponents * math.pi / 2.0
