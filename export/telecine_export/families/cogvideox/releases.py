"""The published CogVideoX models as data: what differs from the defaults of diffusers' classes.

Source: diffusers' scripts/convert_cogvideox_to_diffusers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

TRANSFORMER_2B: Config = {"_class_name": "CogVideoXTransformer3DModel"}
TRANSFORMER_5B: Config = {
    **TRANSFORMER_2B, "num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True,
}  # fmt: skip
TRANSFORMER_5B_I2V: Config = {**TRANSFORMER_5B, "in_channels": 32, "use_learned_positional_embeddings": True}
TRANSFORMER_15: Config = {
    **TRANSFORMER_5B, "patch_size_t": 2, "patch_bias": False,
    "sample_height": 300, "sample_width": 300, "sample_frames": 81,
}  # fmt: skip
TRANSFORMER_15_I2V: Config = {**TRANSFORMER_15, "in_channels": 32, "ofs_embed_dim": 512}
TRANSFORMERS: Mapping[str, Config] = {
    "2b": TRANSFORMER_2B,
    "5b": TRANSFORMER_5B,
    "5b-I2V": TRANSFORMER_5B_I2V,
    "1.5-5b": TRANSFORMER_15,
    "1.5-5b-I2V": TRANSFORMER_15_I2V,
}
# One VAE, of which later releases change the scale of latents.
VAE: Config = {"_class_name": "AutoencoderKLCogVideoX"}
