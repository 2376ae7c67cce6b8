"""Names of LoRA layers in the original layout, against diffusers' own conversion."""

from __future__ import annotations

import pytest
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers

from telecine.families.ltx2.names import PARTS, transformer_name

LAYERS = [
    *(f"{name}.linear" for name in PARTS if name.endswith("single")),
    "patchify_proj",
    "audio_patchify_proj",
    "proj_out",
    *(
        f"transformer_blocks.27.{attention}.{layer}"
        for attention in ("attn1", "audio_attn2", "audio_to_video_attn")
        for layer in ("to_q", "to_out.0", "q_norm", "k_norm", "to_gate_logits")
    ),
    "transformer_blocks.0.audio_ff.net.0.proj",
]


@pytest.mark.parametrize("layer", LAYERS)
def test_they_are_diffusers(layer: str) -> None:
    (theirs,) = _convert_non_diffusers_ltx2_lora_to_diffusers({f"diffusion_model.{layer}.lora_A.weight": 0})
    name = transformer_name(f"diffusion_model.{layer}")
    assert f"transformer.{name}.lora_A.weight" == theirs
    assert transformer_name(name) == name
