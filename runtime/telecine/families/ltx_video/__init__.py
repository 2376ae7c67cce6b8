"""LTX-Video 0.9.x on the host: what runs in which order, in NumPy, around its graphs.

Axes: B videos, C latent channels, F H W latent frames, height, width, T = F·H·W tokens, L text length, D features.
"""

from __future__ import annotations

from typing import Any

from telecine.families.base import Family, PipelineSpec, TwoStageSpec, UpscalerSpec
from telecine.families.ltx_video import conditions, image_to_video, text_to_video, two_stage, upscale, workloads
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.names import NAMING
from telecine.families.silent import SILENT

# `__call__`'s own of the three pipelines, but for what is said below.
DEFAULTS: dict[str, Any] = {
    "height": 512,
    "width": 704,
    "num_frames": 161,
    "frame_rate": 25.0,
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    "num_videos_per_prompt": 1,
    "decode_timestep": 0.0,
    "output_type": "np",
    "max_sequence_length": 128,
}

LTX_VIDEO = Family(
    name="ltx-video",
    naming=NAMING,
    pipelines={
        "LTXPipeline": PipelineSpec(run=text_to_video.run, defaults=DEFAULTS),
        "LTXImageToVideoPipeline": PipelineSpec(
            run=image_to_video.run, defaults=DEFAULTS, takes=frozenset({"image"}), chosen_by=frozenset({"image"})
        ),
        "LTXConditionPipeline": PipelineSpec(
            run=conditions.run,
            defaults=DEFAULTS | {"max_sequence_length": 256, "image_cond_noise_scale": 0.15, "denoise_strength": 1.0},
            # Its `frame_index` and `strength` are a Condition's.
            takes=frozenset(
                ("image", "video", "conditions", "image_cond_noise_scale", "denoise_strength", "second_stage")
            ),
            chosen_by=frozenset({"conditions", "video", "second_stage"}),
        ),
    },
    upscaler=UpscalerSpec(
        run=upscale.run,
        # LTXLatentUpsamplePipeline.__call__'s own, but for height and width (512 and 704 there): a video keeps its own.
        defaults={
            "adain_factor": 0.0,
            "tone_map_compression_ratio": 0.0,
            "decode_timestep": 0.0,
            "output_type": "np",
        },
    ),
    two_stage=TwoStageSpec(run=two_stage.run, defaults=two_stage.DEFAULTS, refinement=two_stage.REFINEMENT),
    grid=lambda host: Host.parse(host).grid,
    axis_ranges=workloads.axis_ranges,
    vae_tile=workloads.VAE_TILE,
    keyframes=workloads.KEYFRAMES,
    refuses={
        "strength": "Pass conditions=[Condition(video=..., strength=...)], or denoise_strength with latents.",
        "use_dynamic_cfg": "Pass guidance_scale as a list, one a step.",
        "sigmas": "Pass timesteps, 1000 times sigmas.",
        **SILENT,
    },
)
