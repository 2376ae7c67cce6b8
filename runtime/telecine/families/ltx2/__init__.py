"""LTX-2 on the host: a video and its sound, denoised together, in NumPy.

Axes: B videos, C channels, F H W latent frames, height, width, T = F·H·W video tokens, S latents of the sound along
time, M bands of the mel scale, L text length, D features.
"""

from __future__ import annotations

from telecine.families.base import Family, PipelineSpec, TwoStageSpec, UpscalerSpec
from telecine.families.ltx2 import condition_to_video, image_to_video, text_to_video, two_stage, upscale, workloads
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.names import NAMING
from telecine.families.ltx2.request import CONDITION_DEFAULTS, DEFAULTS, REFUSES, LTX2Request

LTX2 = Family(
    name="ltx-2",
    naming=NAMING,
    pipelines={
        "LTX2Pipeline": PipelineSpec(run=text_to_video.run, defaults=DEFAULTS, request=LTX2Request),
        "LTX2ImageToVideoPipeline": PipelineSpec(
            run=image_to_video.run,
            defaults=DEFAULTS,
            takes=frozenset({"image", "image_crf"}),
            chosen_by=frozenset({"image"}),
            request=LTX2Request,
        ),
        "LTX2ConditionPipeline": PipelineSpec(
            run=condition_to_video.run,
            defaults=CONDITION_DEFAULTS,
            takes=frozenset({"conditions"}),
            chosen_by=frozenset({"conditions"}),
            request=LTX2Request,
        ),
    },
    upscaler=UpscalerSpec(
        run=upscale.run,
        # LTX2LatentUpsamplePipeline.__call__'s own.
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
    plan_needs_prompt="where its tokens stand in the connectors is worked out from what is padding",
    refuses=REFUSES,
    # The sound's guidance_scale is the video's, where it is 0.
    bench={
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_scale": 0.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0,
    },
)
