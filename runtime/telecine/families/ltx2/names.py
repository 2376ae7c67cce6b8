"""diffusers' names for the tensors of LTX-2's LoRA files; its checkpoints have them already."""

from __future__ import annotations

import re

from telecine.families.base import Naming
from telecine.families.ltx2.gemma import gemma_names
from telecine.families.names import own_names

# Of the original repository's names; each is whole between dots.
PARTS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
# Tensors of both VAEs.
STATISTICS = ("latents_mean", "latents_std")
_PREFIX = re.compile(r"(model\.)?diffusion_model\.")


def transformer_name(name: str) -> str:
    """diffusers' name of a transformer's tensor; a name that is diffusers' already stays as it is.

    Source: diffusers `_convert_non_diffusers_ltx2_lora_to_diffusers`.
    """
    parts = _PREFIX.sub("", name, count=1).split(".")
    return ".".join(PARTS.get(part, part) for part in parts)


NAMING = Naming(
    lora="transformer",  # diffusers' LTX2LoraLoaderMixin loads into the connectors too: keys for them are refused
    rename=transformer_name,
    tensors={
        "text_encoder": gemma_names,
        **dict.fromkeys(
            (
                "connectors", "transformer", "vae_encoder", "vae_decoder", "audio_vae_decoder", "vocoder",
                "latent_upsampler",
            ),
            own_names,
        ),
    },
    tied={},
    recorded={
        "vae_encoder": {name: name for name in STATISTICS},
        "vae_decoder": {name: name for name in STATISTICS},
        "audio_vae_decoder": {name: f"audio_{name}" for name in STATISTICS},
    },
)  # fmt: skip
