"""What diffusers runs in a denoising step of CogVideoX, by shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from telecine.shapes import LatentShape
from telecine_export.graphs import StepCall


def step_call(config: Mapping[str, Any], latent: LatentShape, *, batch: int, text_length: int) -> StepCall:
    """The transformer of (batch, F, C, H, W) latents and (batch, text_length, D) texts, on torch's current device.

    Rotations are left out: they are no products of matrices.
    """
    model = CogVideoXTransformer3DModel.from_config(config)
    inputs = {
        "hidden_states": torch.empty(batch, latent.frames, model.config.in_channels, latent.height, latent.width),
        "encoder_hidden_states": torch.empty(batch, text_length, model.config.text_embed_dim),
        "timestep": torch.empty(batch),
    }
    return model, inputs | ({"ofs": torch.empty(1)} if model.config.ofs_embed_dim else {})
