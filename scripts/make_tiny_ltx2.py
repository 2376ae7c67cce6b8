"""Write a small LTX-2 checkpoint with random weights, in the style of one of the releases.

    python scripts/make_tiny_ltx2.py OUT [--style 2.0|2.3] [--seed 0] [--upscaler OUT_UPSCALER]

As `make_tiny_checkpoint.py`: every real component in diffusers' own layout, the real compression ratios (32 in space, 8
in time; 25 latents, 100 mel frames and 24000 or 48000 samples a second of sound), and weights that make clips and
sounds which are not flat and move with the prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from make_tiny_checkpoint import (
    DTYPES,
    LATENT_CHANNELS,
    SCHEDULER,
    TRANSFORMER_RULES,
    UPSAMPLER_RULES,
    VAE_RULES,
    fill,
)
from tiny_gemma import TEXT, tiny_gemma, tiny_gemma_tokenizer
from transformers.utils.logging import disable_progress_bar

STYLES = ("2.0", "2.3")
TEXT_WIDTH = TEXT["hidden_size"]
HIDDEN_STATES = TEXT["num_hidden_layers"] + 1
HEADS = 2
WIDTH, AUDIO_WIDTH = 64, 32  # 64 % 6 = 4, so the video's rotary tables are padded as at 4096
REGISTERS = 16  # prompts' lengths are multiples of it, as of 128 in the releases
AUDIO_CHANNELS, MEL_BINS = 2, 16
AUDIO_LATENT_WIDTH = AUDIO_CHANNELS * MEL_BINS // 4  # the audio VAE's first channels are so many, as in the releases

# What each style adds to the base, in the table below it.
TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "cross_attention_dim": WIDTH,
    "audio_in_channels": AUDIO_LATENT_WIDTH,
    "audio_out_channels": AUDIO_LATENT_WIDTH,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_WIDTH // HEADS,
    "audio_cross_attention_dim": AUDIO_WIDTH,
    "num_layers": 2,
    "caption_channels": TEXT_WIDTH,
    "rope_type": "split",
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.3": {
        "gated_attn": True,
        "audio_gated_attn": True,
        "cross_attn_mod": True,
        "audio_cross_attn_mod": True,
        "perturbed_attn": True,
        "use_prompt_embeddings": False,
    },
}
CONNECTORS: dict[str, Any] = {
    "caption_channels": TEXT_WIDTH,
    "text_proj_in_factor": HIDDEN_STATES,
    "video_connector_num_learnable_registers": REGISTERS,
    "audio_connector_num_learnable_registers": REGISTERS,
    "rope_type": "split",
}
CONNECTOR_STYLES: dict[str, dict[str, Any]] = {
    "2.0": {
        "video_connector_num_attention_heads": 3,
        "video_connector_attention_head_dim": TEXT_WIDTH // 3,
        "video_connector_num_layers": 1,
        "audio_connector_num_attention_heads": 3,
        "audio_connector_attention_head_dim": TEXT_WIDTH // 3,
        "audio_connector_num_layers": 1,
    },
    "2.3": {
        "video_connector_num_attention_heads": HEADS,
        "video_connector_attention_head_dim": WIDTH // HEADS,
        "video_connector_num_layers": 2,
        "video_gated_attn": True,
        "audio_connector_num_attention_heads": HEADS,
        "audio_connector_attention_head_dim": AUDIO_WIDTH // HEADS,
        "audio_connector_num_layers": 2,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "video_hidden_dim": WIDTH,
        "audio_hidden_dim": AUDIO_WIDTH,
        "proj_bias": True,
    },
}
VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": (1, 0, 0, 0, 1),  # tracing takes its time of every layer
    "encoder_causal": True,
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
VAES: dict[str, dict[str, Any]] = {
    "2.0": {
        "block_out_channels": (16, 32, 32, 64),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 0, 0, 1),
        "decoder_spatial_padding_mode": "reflect",
    },
    "2.3": {
        "block_out_channels": (16, 32, 64, 64),
        "decoder_block_out_channels": (8, 16, 16, 32),
        "decoder_layers_per_block": (1, 0, 0, 0, 1),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}
AUDIO_VAE: dict[str, Any] = {
    "base_channels": AUDIO_LATENT_WIDTH,
    "ch_mult": (1, 2, 4),
    "num_res_blocks": 1,
    "latent_channels": AUDIO_CHANNELS,
    "mel_bins": MEL_BINS,
}
VOCODER: dict[str, Any] = {
    "in_channels": 2 * MEL_BINS,
    "hidden_channels": 32,
    "resnet_kernel_sizes": [3, 7],
    "resnet_dilations": [[1], [3]],
}
FIRST: dict[str, Any] = {"upsample_kernel_sizes": [17, 20], "upsample_factors": [15, 16]}  # a second of 24000
EXTENDED: dict[str, Any] = {  # a second of 16000, then of 48000
    "upsample_kernel_sizes": [12, 20],
    "upsample_factors": [10, 16],
    "bwe_in_channels": 2 * MEL_BINS,
    "bwe_hidden_channels": 16,
    "bwe_upsample_kernel_sizes": [17, 20],
    "bwe_upsample_factors": [15, 16],
    "bwe_resnet_kernel_sizes": [3, 7],
    "bwe_resnet_dilations": [[1], [3]],
    "filter_length": 128,
    "window_length": 128,
    "num_mel_channels": MEL_BINS,
}
LTX2_RULES = (("audio_norm_q.weight", 1.0, 0.2), ("audio_norm_k.weight", 1.0, 0.2), *TRANSFORMER_RULES)
CONNECTOR_RULES = (("learnable_registers", 0.0, 1.0), *TRANSFORMER_RULES)
AUDIO_VAE_RULES = (("decoder.conv_out.conv.weight", 0.0, 0.5), (".bias", 0.0, 0.1))
# Samples in [-1, 1] near a standard deviation of 0.3, so that few are clipped.
FIRST_RULES = (("conv_out.weight", 0.0, 0.4), (".bias", 0.0, 0.1))
EXTENDED_RULES = (
    ("bwe_generator.conv_out.weight", 0.0, 0.05),
    ("vocoder.conv_out.weight", 0.0, 0.05),
    (".alpha", 0.0, 0.3),
    (".beta", 0.0, 0.3),
    (".bias", 0.0, 0.1),
)


def tiny_ltx2_transformer(*, style: str, seed: int, **config: Any) -> Any:
    """Build a transformer of (B, T, 16) video tokens, 64 wide, and (B, S, 8) of sound, 32 wide."""
    transformer: Any = LTX2VideoTransformer3DModel(**TRANSFORMER | TRANSFORMERS[style] | config)
    fill(transformer, LTX2_RULES, seed)
    return transformer


def tiny_connectors(*, style: str, seed: int, **config: Any) -> Any:
    """Build connectors of (B, L, 48 * 3) hidden states, for whole multiples of 16 tokens."""
    connectors: Any = LTX2TextConnectors(**CONNECTORS | CONNECTOR_STYLES[style] | config)
    fill(connectors, CONNECTOR_RULES, seed)
    return connectors


def tiny_ltx2_vae(*, style: str, seed: int, **config: Any) -> Any:
    """Build a VAE: (B, 3, 8k+1, 32h, 32w) to (B, 16, k+1, h, w) and back."""
    vae: Any = AutoencoderKLLTX2Video(**VAE | VAES[style] | config)
    fill(vae, VAE_RULES, seed)
    set_statistics(vae, seed)
    return vae


def tiny_audio_vae(*, seed: int, **config: Any) -> Any:
    """Build an audio VAE, whose decoder makes (B, 2, 4S-3, 16) mel spectrograms of (B, 2, S, 4) latents."""
    audio_vae: Any = AutoencoderKLLTX2Audio(**AUDIO_VAE | config)
    fill(audio_vae, AUDIO_VAE_RULES, seed)
    set_statistics(audio_vae, seed)
    return audio_vae


def set_statistics(vae: Any, seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    vae.latents_mean.copy_(0.3 * torch.randn(vae.latents_mean.shape, generator=generator))
    vae.latents_std.copy_(0.7 + 0.6 * torch.rand(vae.latents_std.shape, generator=generator))


def tiny_vocoder(*, style: str, seed: int, **config: Any) -> Any:
    """Build a vocoder of (B, 2, T, 16) mel frames: 240 samples of each, or with bandwidth extension 480."""
    if style == "2.0":
        vocoder: Any = LTX2Vocoder(**VOCODER | FIRST | config)
        fill(vocoder, FIRST_RULES, seed)
        return vocoder
    vocoder = LTX2VocoderWithBWE(**VOCODER | EXTENDED | config)
    set_bases(vocoder)
    fill(vocoder, EXTENDED_RULES, seed)
    return vocoder


def set_bases(vocoder: Any) -> None:
    """Fill in what diffusers expects in the checkpoint: windowed sines and cosines, and triangles over frequencies."""
    stft = vocoder.mel_stft.stft_fn
    frequencies, length = stft.forward_basis.shape[0] // 2, stft.forward_basis.shape[2]
    angles = 2 * torch.pi / length * torch.arange(frequencies)[:, None] * torch.arange(length)
    basis = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(length)
    stft.forward_basis.copy_(basis[:, None])
    stft.inverse_basis.copy_(basis[:, None] / length)
    bins = vocoder.mel_stft.mel_basis.shape[0]
    centres = torch.linspace(0, frequencies - 1, bins)[:, None]
    distance = (torch.arange(frequencies) - centres).abs() * (bins - 1) / (frequencies - 1)
    vocoder.mel_stft.mel_basis.copy_((1 - distance).clamp(min=0) / frequencies)


def tiny_ltx2_upsampler(*, style: str, seed: int, **config: Any) -> Any:
    """Build an upsampler of (B, 16, F, H, W) latents; its GroupNorms have 32 groups, so 32 channels are the fewest."""
    upsampler: Any = LTX2LatentUpsamplerModel(
        **{
            "in_channels": LATENT_CHANNELS,
            "mid_channels": 32,
            "num_blocks_per_stage": 1,
            "use_rational_resampler": style == "2.0",
            **config,
        }
    )
    fill(upsampler, UPSAMPLER_RULES, seed)
    return upsampler


def make_tiny_ltx2(
    out: Path, *, style: str = "2.3", seed: int = 0, dtype: str = "float32", **configs: dict[str, Any]
) -> Path:
    """Write a checkpoint that LTX2Pipeline, LTX2ImageToVideoPipeline and LTX2ConditionPipeline load, and return `out`.

    Args:
        style: one of STYLES.
        dtype: what the weights are stored as: float32, float16 or bfloat16.
        configs: overrides by component: transformer, connectors, vae, audio_vae, vocoder, text_encoder, scheduler.
    """
    out = Path(out)
    tokenizer = tiny_gemma_tokenizer(out / "tokenizer")
    styled: dict[str, Any] = {"style": style, "seed": seed}
    pipeline: Any = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER | configs.get("scheduler", {})),
        vae=tiny_ltx2_vae(**styled, **configs.get("vae", {})),
        audio_vae=tiny_audio_vae(seed=seed, **configs.get("audio_vae", {})),
        text_encoder=tiny_gemma(tokenizer, seed=seed, **configs.get("text_encoder", {})),
        tokenizer=tokenizer,
        connectors=tiny_connectors(**styled, **configs.get("connectors", {})),
        transformer=tiny_ltx2_transformer(**styled, **configs.get("transformer", {})),
        vocoder=tiny_vocoder(**styled, **configs.get("vocoder", {})),
    )
    if dtype != "float32":
        pipeline.to(dtype=DTYPES[dtype])
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


def make_tiny_ltx2_upscaler(
    out: Path, *, style: str = "2.3", seed: int = 0, dtype: str = "float32", **config: Any
) -> Path:
    """Write an upscaler that LTX2LatentUpsamplePipeline loads, and return `out`.

    Its VAE is that of the tiny checkpoint of the same style and seed; `config` is LTX2LatentUpsamplerModel's.
    """
    pipeline: Any = LTX2LatentUpsamplePipeline(
        vae=tiny_ltx2_vae(style=style, seed=seed),
        latent_upsampler=tiny_ltx2_upsampler(style=style, seed=seed, **config),
    )
    if dtype != "float32":
        pipeline.to(dtype=DTYPES[dtype])
    pipeline.save_pretrained(out, safe_serialization=True)
    return Path(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small LTX-2 checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--style", choices=STYLES, default="2.3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--upscaler", type=Path, help="write a spatial latent upsampler for it here")
    arguments = parser.parse_args()
    disable_progress_bar()  # of transformers' save_pretrained
    told: dict[str, Any] = {"style": arguments.style, "seed": arguments.seed, "dtype": arguments.dtype}
    print(make_tiny_ltx2(arguments.out, **told))
    if arguments.upscaler:
        print(make_tiny_ltx2_upscaler(arguments.upscaler, **told))


if __name__ == "__main__":
    main()
