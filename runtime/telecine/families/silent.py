"""Parameters of models that make sound, for families that make none: what to do instead of each."""

from __future__ import annotations

from collections.abc import Mapping

_NO_SOUND = "The model makes no sound: leave it out."

SILENT: Mapping[str, str] = {
    "motion_speed": "Pass frame_rate, where the model is told one.",
    "modality_scale": _NO_SOUND,
    "audio_guidance_scale": _NO_SOUND,
    "audio_stg_scale": _NO_SOUND,
    "audio_modality_scale": _NO_SOUND,
    "audio_guidance_rescale": _NO_SOUND,
    "audio_latents": _NO_SOUND,
    "use_cross_timestep": _NO_SOUND,
    "spatio_temporal_guidance_blocks": "LTX-2's name: pass stg_blocks, where the model has spatio-temporal guidance.",
    "noise_scale": "Pass denoise_strength or strength, where the model takes one.",
    "image_crf": "Images are taken as they are: compress the file before.",
}
