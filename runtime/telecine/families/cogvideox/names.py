"""diffusers' names for the tensors of CogVideoX: its checkpoints and LoRA files have no others."""

from __future__ import annotations

from telecine.families.base import Naming
from telecine.families.names import TIED_NAMES, own_names

NAMING = Naming(
    lora="transformer",  # diffusers' CogVideoXLoraLoaderMixin loads into nothing else
    rename=lambda name: name,
    tensors=dict.fromkeys(("text_encoder", "transformer", "vae_encoder", "vae_decoder"), own_names),
    tied=TIED_NAMES,
    recorded={},
)
