"""Floating-point operations of a denoising step, counted by torch from the transformer's shapes; nothing is run."""

from __future__ import annotations

import torch
from diffusers import LTXVideoTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from telecine.shapes import LatentShape


def step_flops(source: str, latent: LatentShape, *, batch: int, text_length: int) -> int:
    """Of (batch, T, C) latents and (batch, text_length, D) texts, products and convolutions, as diffusers runs them."""
    config = LTXVideoTransformer3DModel.load_config(source, subfolder="transformer", local_files_only=True)
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel.from_config(config).eval()
        inputs = {
            "hidden_states": torch.empty(batch, latent.tokens, config["in_channels"]),
            "encoder_hidden_states": torch.empty(batch, text_length, config["caption_channels"]),
            "encoder_attention_mask": torch.empty(batch, text_length),
            "timestep": torch.empty(batch),
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs, num_frames=latent.frames, height=latent.height, width=latent.width)
    return counter.get_total_flops()
