"""What diffusers runs in a denoising step of LTX-2, by shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from telecine.families.ltx2.audio import SLOWEST
from telecine.shapes import LatentShape
from telecine_export.families.ltx2.transformer import text_widths
from telecine_export.graphs import StepCall


def step_call(config: Mapping[str, Any], latent: LatentShape, *, batch: int, text_length: int) -> StepCall:
    """The transformer of (batch, T, C) tokens of a video, of its sound at 24 frames a second, and of their texts, on
    torch's current device. It is one pass: STG and modality guidance are further ones.
    """
    model = LTX2VideoTransformer3DModel.from_config(config)
    told = model.config
    text, audio_text = text_widths(told)
    seconds = ((latent.frames - 1) * told.vae_scale_factors[0] + 1) / SLOWEST
    rate = told.audio_sampling_rate / told.audio_hop_length / told.audio_scale_factor
    audio_latents = round(seconds * rate)
    inputs = {
        "hidden_states": torch.empty(batch, latent.tokens, told.in_channels),
        "audio_hidden_states": torch.empty(batch, audio_latents, told.audio_in_channels),
        "encoder_hidden_states": torch.empty(batch, text_length, text),
        "audio_encoder_hidden_states": torch.empty(batch, text_length, audio_text),
        "timestep": torch.empty(batch),
        "sigma": torch.empty(batch),  # read from 2.3 on
    }
    sides = {"num_frames": latent.frames, "height": latent.height, "width": latent.width}
    return model, inputs | sides | {"fps": SLOWEST, "audio_num_frames": audio_latents}
