"""CogVideoX 1.0 and 1.5 on the host: what runs in which order, in NumPy, around its graphs.

Axes: B videos, F C H W latent frames, channels, height, width (in this order here), L text length, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from telecine.families.base import Family, PipelineSpec
from telecine.families.cogvideox import image_to_video, text_to_video, video_to_video, workloads
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.names import NAMING
from telecine.families.silent import SILENT

# `__call__`'s own of the three pipelines, but for what is said below.
DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 6.0,
    "guidance_rescale": 0.0,
    "num_videos_per_prompt": 1,
    "decode_timestep": 0.0,
    "output_type": "np",
    "max_sequence_length": 226,
    "masked_text": False,
}
NEWER, OLDER = 16.0, 8.0  # frames a second that models of 1.5 and of 1.0 were trained at


def model_defaults(host: Mapping[str, Any]) -> dict[str, Any]:
    """The size that the transformer's configuration names, which is what diffusers falls back to."""
    return {**host["sample"], "frame_rate": OLDER if host["patch_size_t"] is None else NEWER}


_NO_STG = "CogVideoX' blocks take no perturbation: leave spatio-temporal guidance out."
_NO_TIME_TILES = "Its VAE runs in chunks of 2 latents, whatever is asked: tile_size and memory_limit tile in space."

COGVIDEOX = Family(
    name="cogvideox",
    naming=NAMING,
    pipelines={
        "CogVideoXPipeline": PipelineSpec(
            run=text_to_video.run,
            defaults=DEFAULTS,
            takes=frozenset({"num_frames"}),
            model_defaults=model_defaults,
        ),
        "CogVideoXImageToVideoPipeline": PipelineSpec(
            run=image_to_video.run,
            defaults=DEFAULTS,
            takes=frozenset({"num_frames", "image"}),
            chosen_by=frozenset({"image"}),
            model_defaults=lambda host: model_defaults(host) | {"num_frames": 49},
        ),
        "CogVideoXVideoToVideoPipeline": PipelineSpec(
            run=video_to_video.run,
            defaults=DEFAULTS | {"strength": 0.8},
            takes=frozenset({"video", "strength"}),
            chosen_by=frozenset({"video"}),
            model_defaults=model_defaults,
        ),
    },
    grid=lambda host: Host.parse(host).grid,
    axis_ranges=workloads.axis_ranges,
    refuses={
        "frame_rate": "The model is told none; pass frame_rate to save().",
        "timesteps": "Its schedulers step by the number of steps: use num_inference_steps.",
        "guidance_rescale": "CogVideoX has no rescaling: use use_dynamic_cfg.",
        "guidance_sigmas": "Give guidance_scale as a list with one a step.",
        "cfg_star": "Leave it out: CogVideoX has plain guidance.",
        "stg_scale": _NO_STG,
        "stg_mode": _NO_STG,
        "stg_blocks": _NO_STG,
        "conditions": "Pass image= to a model that takes one, or video=.",
        "image_cond_noise_scale": "Leave it out: an image stands beside the latents, without noise.",
        "denoise_strength": "Pass video= or latents= with strength=.",
        "prompt_attention_mask": "CogVideoX attends to all of the text: pass prompt_embeds alone.",
        "negative_prompt_attention_mask": "CogVideoX attends to all of the text: pass negative_prompt_embeds alone.",
        "decode_timestep": "Its decoder takes none.",
        "decode_noise_scale": "Its decoder takes none.",
        "tile_frames": _NO_TIME_TILES,
        "tile_frame_stride": _NO_TIME_TILES,
        "sigmas": "Its schedulers step by the number of steps: use num_inference_steps.",
        **SILENT,
    },
)
