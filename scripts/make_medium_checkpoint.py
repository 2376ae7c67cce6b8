"""Write a medium LTX-Video checkpoint with random weights: what `telecine bench` measures on a CPU.

    python scripts/make_medium_checkpoint.py OUT [--seed 0]

A quarter of the widths of LTX-Video 2B, 8 of its 28 layers, its ratios, head size and form of VAE (0.9.5): at 512x512
and 25 frames 1,024 tokens, where matrix products, attention and convolutions have about their shares of the real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from make_tiny_checkpoint import SCHEDULER, TEXT_RULES, TRANSFORMER_RULES, VAE, VAE_RULES, fill, tiny_tokenizer
from transformers import T5Config, T5EncoderModel
from transformers.utils.logging import disable_progress_bar

LATENT_CHANNELS, TEXT_WIDTH = 128, 512
TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "cross_attention_dim": 512,
    "num_layers": 8,
    "caption_channels": TEXT_WIDTH,
}
MEDIUM_VAE: dict[str, Any] = VAE | {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (16, 32, 64, 128, 128),
    "layers_per_block": (1, 2, 2, 1, 1),
    "decoder_block_out_channels": (32, 64, 128),
    "decoder_layers_per_block": (2, 2, 2, 2),
    "timestep_conditioning": True,
}
T5: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 8,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def make_medium_checkpoint(out: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint that `LTXPipeline.from_pretrained(out)` loads, and return `out`."""
    tokenizer = tiny_tokenizer(out / "tokenizer")
    config_class: Any = T5Config  # its fields are set by a decorator that mypy does not follow
    text_encoder = T5EncoderModel(config_class(vocab_size=-(-len(tokenizer) // 64) * 64, **T5))
    transformer: Any = LTXVideoTransformer3DModel(**TRANSFORMER)
    vae: Any = AutoencoderKLLTXVideo(**MEDIUM_VAE)
    for module, rules in ((text_encoder, TEXT_RULES), (transformer, TRANSFORMER_RULES), (vae, VAE_RULES)):
        fill(module, rules, seed)
    vae.latents_mean.copy_(torch.zeros(LATENT_CHANNELS))
    vae.latents_std.copy_(torch.ones(LATENT_CHANNELS))
    pipeline: Any = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a medium LTX-Video checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    disable_progress_bar()  # of transformers' save_pretrained
    print(make_medium_checkpoint(arguments.out, seed=arguments.seed))


if __name__ == "__main__":
    main()
