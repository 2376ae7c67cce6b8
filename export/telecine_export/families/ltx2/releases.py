"""The published LTX-2 transformers as data: what differs from the defaults of diffusers' class.

Source: diffusers' scripts/convert_ltx2_to_diffusers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

TRANSFORMER_20: Config = {"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "split"}
TRANSFORMER_23: Config = {
    **TRANSFORMER_20, "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True,
    "audio_cross_attn_mod": True, "use_prompt_embeddings": False, "perturbed_attn": True,
}  # fmt: skip
TRANSFORMERS: Mapping[str, Config] = {"2.0": TRANSFORMER_20, "2.3": TRANSFORMER_23}
