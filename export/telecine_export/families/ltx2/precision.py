"""LTX-2's precision policies: what stays in float32 and why, what FP8 takes, and what its quality is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from telecine.picture_quality import Clip
from telecine.pipeline import Pipeline
from telecine_export.families.ltx_video.precision import LATENT_UPSAMPLER, VAE
from telecine_export.families.weightless import POLICIES as WEIGHTLESS
from telecine_export.precision.policy import Policy, Quantised, Rule
from telecine_export.precision.sound_picture import sound_picture
from telecine_export.precision.trial import CALIBRATION_PROMPTS, Trial

ATTENTION = Rule(operators=("Attention",), half=True, reason="attention kernels are half precision, and sum in float32")

TEXT_ENCODER = Policy(
    rules=(
        ATTENTION,
        Rule(
            modules=r".*embed_tokens",
            operators=("Gather",),
            half=True,
            reason="a table of two gigabytes, whose values are small: rounded once, then scaled in float32",
        ),
        Rule(modules=r".*embed_tokens", reason="what begins the residual stream, times the root of its width"),
        Rule(
            modules=r".*\.layers\.\d+",
            reason="Gemma-3's residual stream passes 65504; in bf16 what late layers add would fall below its last bit",
        ),
        Rule(modules=r".*norm", reason="squares of the residual stream pass 65504 even where it does not"),
        Rule(modules=r".*\.mlp(\.act_fn)?", reason="the gated product has Gemma's largest values, and GELU cubes them"),
        Rule(
            modules=r".*\.mlp\.down_proj",
            halves=("fp16",),
            reason="sums of the gated product, which only the norm behind it brings back into fp16's range",
        ),
        Rule(
            modules=r"rotary(\..*)?|.*\.self_attn",
            operators=("Add", "Mul", "Sub", "Neg", "Cos", "Sin"),
            reason="RoPE turns queries and keys by angles of up to a thousand radians",
        ),
        Rule(modules=r"", reason="hidden states of all layers, normalised: deviations over the width, or over a text"),
    ),
    quantised=(
        Quantised(
            modules=r".*\.(self_attn\.[qkvo]_proj|mlp\.(gate|up)_proj)",
            reason="their inputs are normalised, or averages of what is: one scale a tensor serves them",
        ),
        Quantised(
            modules=r".*\.mlp\.down_proj",
            activations=False,
            reason="outliers of the gated product, which one scale a tensor would flush the rest to 0 for",
        ),
    ),
)

CONNECTORS = Policy(
    rules=(
        ATTENTION,
        Rule(modules=r".*\.transformer_blocks\.\d+", reason="the residual stream that every block adds to"),
        Rule(modules=r".*\.norm(\d|_q|_k|_out)", reason="norms: sums of squares over the width"),
        Rule(
            modules=r".*\.attn1",
            operators=("Add", "Mul", "Sub"),  # opset 20 spells attention out in MatMul and Softmax: kernels are half
            reason="RoPE turns queries and keys in float32, as diffusers does",
        ),
    ),
    not_fp8="they run once a prompt, and all that every step attends to comes from here",
)

TRANSFORMER = Policy(
    rules=(
        ATTENTION,
        Rule(
            modules=r"((audio_)?(time_embed|prompt_adaln)|av_cross_attn_(video|audio)_\w+)(\..*)?",
            reason="a timestep of 1000 has steps of 0.5 in fp16 and of 4 in bf16, and every block is modulated by it",
        ),
        Rule(
            modules=r"(audio_)?(proj_in|proj_out|norm_out)",
            reason="patchify and output projections: all that is seen and heard passes",
        ),
        Rule(modules=r"transformer", reason="the last modulations: nothing to gain"),
        Rule(
            modules=r"transformer_blocks\.\d+",
            reason="AdaLN's scales, shifts and gates, and the residual streams that every block adds to",
        ),
        Rule(
            modules=r".*\.(audio_)?norm(\d|_q|_k)|.*\.(audio_to_video|video_to_audio)_norm",
            reason="norms: sums of squares over the width",
        ),
        Rule(
            modules=r"(cross_attn_)?(audio_)?rope|.*\.((audio_)?attn1|audio_to_video_attn|video_to_audio_attn)",
            operators=("Add", "Mul", "Sub"),  # opset 20 spells attention out in MatMul and Softmax: kernels are half
            reason="RoPE turns queries and keys in float32, as diffusers does",
        ),
    ),
    quantised=(
        Quantised(
            modules=(
                r"transformer_blocks\.\d+\.("
                r"((audio_)?attn[12]|audio_to_video_attn|video_to_audio_attn)(\.to_(q|k|v|qkv|kv)|\.to_out\.0)?"
                r"|(audio_)?ff\.net\.(0\.proj|2))"
            ),
            reason="nearly all of the work; their inputs are normalised or bounded",
        ),
    ),
    block=r"transformer_blocks\.(\d+)(?:\.|$)",
    edge_share=1 / 16,  # 3 of 48
)

SOUND = Policy(
    only_fp32="it is small, and a sound's 16 bits, which pass through all of it, are more than fp16 or bf16 keeps"
)

POLICIES: Mapping[str, Policy] = {
    "text_encoder": TEXT_ENCODER,
    "connectors": CONNECTORS,
    "transformer": TRANSFORMER,
    "vae_encoder": VAE,
    "vae_decoder": VAE,
    "audio_vae_decoder": SOUND,
    "vocoder": SOUND,
    "latent_upsampler": LATENT_UPSAMPLER,
    **WEIGHTLESS,
}

NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, distorted voice"
SETTINGS: Mapping[str, Any] = {
    "negative_prompt": NEGATIVE_PROMPT,
    "frame_rate": 24.0,
    "guidance_scale": 3.0,
    "audio_guidance_scale": 7.0,
    "max_sequence_length": 128,  # as many as the registers of the releases
}
# What the quality is measured on: another prompt and other noise than calibration has.
REQUEST: Mapping[str, Any] = {
    **SETTINGS,
    "prompt": "a yellow square drifts upwards, against a dark blue wall, and hums",
    "height": 96,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 8,
    "seed": 7,
    "output_type": "np",
}
IMAGE_STEPS = 4
# An image of gradients for the VAE's encoder: nothing that a codec or a random seed could change.
RAMP = np.linspace(0, 255, REQUEST["height"], dtype=np.uint8)
IMAGE = np.stack(np.broadcast_arrays(RAMP[:, None], RAMP[None], RAMP[::-1, None]), axis=-1)


def clips(pipe: Pipeline, request: Mapping[str, Any]) -> list[Clip]:
    """A clip of text, one of an image (through the VAE's encoder), and one upscaled, where there is an upsampler.

    After them the sounds of the first two, as pictures of their spectra.
    """
    asked = {**_fitted(pipe.bundle.manifest.host), **request}
    short = {**asked, "num_inference_steps": IMAGE_STEPS, "num_frames": 9}
    made = [
        pipe.generate(**asked, pipeline="LTX2Pipeline"),
        pipe.generate(**short, image=IMAGE, image_crf=0, pipeline="LTX2ImageToVideoPipeline"),
    ]
    if "latent_upsampler" in pipe.bundle.manifest.components:
        small = pipe.generate(**short | {"output_type": "latent"}, pipeline="LTX2Pipeline")
        made.append(pipe.upscale(latents=small.latents, output_type="np"))
    frames = [each.frames[0] for each in made if each.frames is not None]
    return frames + [sound_picture(each.audio[0]) for each in made if each.audio is not None]


def calibration(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests that end at the latents, one a size."""
    settings = {
        **SETTINGS,
        **_fitted(host),
        "num_inference_steps": 4,
        "output_type": "latent",
        "pipeline": "LTX2Pipeline",
    }
    return [
        {**settings, "height": height, "width": width, "num_frames": frames}
        for height, width, frames in ((96, 96, 17), (64, 160, 9))
    ]


def _fitted(host: Mapping[str, Any]) -> dict[str, Any]:
    """What a request must say of the release, and the block that guidance perturbs: the published models' or a last."""
    return {
        "use_cross_timestep": host["perturbed_attention"],
        "spatio_temporal_guidance_blocks": [min(28, host["transformer_blocks"] - 1)],
    }


TRIAL = Trial(request=REQUEST, clips=clips, calibration=calibration, prompts=CALIBRATION_PROMPTS, seeds=(0, 1))
