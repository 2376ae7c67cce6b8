"""What diffusers runs in a denoising step of LTX-Video, by shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel

from telecine.shapes import LatentShape
from telecine_export.graphs import StepCall


def step_call(config: Mapping[str, Any], latent: LatentShape, *, batch: int, text_length: int) -> StepCall:
    """The transformer of (batch, T, C) latents and (batch, text_length, D) texts, on torch's current device."""
    model = LTXVideoTransformer3DModel.from_config(config)
    inputs = {
        "hidden_states": torch.empty(batch, latent.tokens, config["in_channels"]),
        "encoder_hidden_states": torch.empty(batch, text_length, config["caption_channels"]),
        "encoder_attention_mask": torch.empty(batch, text_length),
        "timestep": torch.empty(batch),
    }
    return model, inputs | {"num_frames": latent.frames, "height": latent.height, "width": latent.width}
