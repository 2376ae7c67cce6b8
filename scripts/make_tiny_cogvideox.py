"""Write a small CogVideoX checkpoint with random weights, in the style of one of the releases.

    python scripts/make_tiny_cogvideox.py OUT [--style 2b|5b|5b-I2V|1.5-5b|1.5-5b-I2V] [--seed 0]

As `make_tiny_checkpoint.py`: every real component in diffusers' own layout, the real compression ratios (8 in space, 4
in time), and weights that make clips which are not grey and move with the prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from make_tiny_checkpoint import DTYPES, TEXT_WIDTH, fill, tiny_text_encoder, tiny_tokenizer
from transformers.utils.logging import disable_progress_bar

LATENT_CHANNELS = 4
SCHEDULERS: dict[str, Any] = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
SCHEDULER: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
}
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 2,
    "sample_height": 8,
    "sample_width": 12,
    "sample_frames": 9,
}
ROTARY: dict[str, Any] = {"use_rotary_positional_embeddings": True}
# 1.5 counts places up to half of its sample's sides.
NEWER: dict[str, Any] = ROTARY | {"patch_size_t": 2, "sample_height": 20, "sample_width": 24, "patch_bias": False}
IMAGE: dict[str, Any] = {"in_channels": 2 * LATENT_CHANNELS}
# The transformer, the VAE and the scheduler of each release, as they differ; those with an image say so in their name.
STYLES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "2b": ({}, {"scaling_factor": 1.15258426}, {"snr_shift_scale": 3.0}),
    "5b": (ROTARY, {}, {}),
    "5b-I2V": (ROTARY | IMAGE | {"use_learned_positional_embeddings": True}, {}, {}),
    "1.5-5b": (NEWER, {"invert_scale_latents": True}, {}),
    "1.5-5b-I2V": (NEWER | IMAGE | {"ofs_embed_dim": 16}, {"invert_scale_latents": True}, {}),
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    # diffusers' tiles have half of this: 6 x 10 latents.
    "sample_height": 96,
    "sample_width": 160,
}
TRANSFORMER_RULES = (
    ("norm_q.weight", 1.0, 0.2),
    ("norm_k.weight", 1.0, 0.2),
    ("norm.weight", 1.0, 0.2),
    ("norm_final.weight", 1.0, 0.2),
    ("norm1.linear.weight", 0.0, 0.2),
    ("norm2.linear.weight", 0.0, 0.2),
    (".bias", 0.0, 0.3),
)
VAE_RULES = (
    ("norm_layer.weight", 1.0, 0.2),
    ("conv_y.conv.bias", 1.0, 0.2),  # a scale
    ("norm1.weight", 1.0, 0.2),
    ("norm2.weight", 1.0, 0.2),
    ("norm_out.weight", 1.0, 0.2),
    (".bias", 0.0, 0.1),
)


def tiny_cogvideox_transformer(*, seed: int, **config: Any) -> Any:
    """Build a transformer of (B, F, 4, H, W) latents, 32 wide, with a text width of 32."""
    transformer: Any = CogVideoXTransformer3DModel(**TRANSFORMER | config)
    fill(transformer, TRANSFORMER_RULES, seed)
    if transformer.config.use_learned_positional_embeddings:
        embed = transformer.patch_embed
        generator = torch.Generator("cpu").manual_seed(seed)
        # diffusers makes it in float64.
        embed.pos_embedding = 0.5 * torch.randn(embed.pos_embedding.shape, generator=generator)
    return transformer


def tiny_cogvideox_vae(*, seed: int, **config: Any) -> Any:
    """Build a VAE: (B, 3, 4k+1, 8h, 8w) to (B, 4, k+1, h, w) and back."""
    vae: Any = AutoencoderKLCogVideoX(**VAE | config)
    fill(vae, VAE_RULES, seed)
    return vae


def make_tiny_cogvideox(
    out: Path, *, style: str = "5b", seed: int = 0, scheduler: str = "ddim", dtype: str = "float32", **config: Any
) -> Path:
    """Write a checkpoint that its pipeline's `from_pretrained(out)` loads, and return `out`.

    Args:
        style: one of STYLES.
        scheduler: "ddim" or "dpm".
        dtype: what the weights are stored as: float32, float16 or bfloat16.
        config: overrides of the transformer's.
    """
    out = Path(out)
    transformer, vae, schedule = STYLES[style]
    tokenizer = tiny_tokenizer(out / "tokenizer")
    vocabulary = -(-len(tokenizer) // 64) * 64
    kind: Any = CogVideoXImageToVideoPipeline if style.endswith("I2V") else CogVideoXPipeline
    pipeline = kind(
        scheduler=SCHEDULERS[scheduler](**SCHEDULER | schedule),
        vae=tiny_cogvideox_vae(seed=seed, **vae),
        text_encoder=tiny_text_encoder(vocabulary=vocabulary, seed=seed),
        tokenizer=tokenizer,
        transformer=tiny_cogvideox_transformer(seed=seed, **transformer | config),
    )
    if dtype != "float32":
        pipeline.to(dtype=DTYPES[dtype])
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small CogVideoX checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--style", choices=list(STYLES), default="5b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scheduler", choices=list(SCHEDULERS), default="ddim")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    arguments = parser.parse_args()
    disable_progress_bar()  # of transformers' save_pretrained
    print(
        make_tiny_cogvideox(
            arguments.out,
            style=arguments.style,
            seed=arguments.seed,
            scheduler=arguments.scheduler,
            dtype=arguments.dtype,
        )
    )


if __name__ == "__main__":
    main()
