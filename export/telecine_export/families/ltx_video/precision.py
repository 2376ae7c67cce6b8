"""LTX-Video's precision policy: what stays in float32 and why, what FP8 takes, and what its quality is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from telecine.picture_quality import Clip
from telecine.pipeline import Pipeline, Result
from telecine_export.families.t5 import TEXT_ENCODER
from telecine_export.families.weightless import POLICIES as WEIGHTLESS
from telecine_export.precision.policy import Policy, Quantised, Rule
from telecine_export.precision.trial import CALIBRATION_PROMPTS, Trial

TRANSFORMER = Policy(
    rules=(
        Rule(operators=("Attention",), half=True, reason="attention kernels are half precision, and sum in float32"),
        Rule(
            modules=r"time_embed(\..*)?",
            reason="a timestep of 1000 has steps of 0.5 in fp16 and of 4 in bf16, and every block is modulated by it",
        ),
        Rule(modules=r"proj_in|proj_out|norm_out", reason="patchify and output projections: all that is seen passes"),
        Rule(modules=r"transformer", reason="the last modulation, and the mask's bias of -10000"),
        Rule(
            modules=r"transformer_blocks\.\d+",
            reason="AdaLN's scales, shifts and gates, and the residual stream that every block adds to",
        ),
        Rule(modules=r".*\.norm(\d|_q|_k)?", reason="norms: sums of squares over the width"),
        Rule(
            modules=r"rope|.*\.attn1",
            operators=("Add", "Mul", "Sub"),  # opset 20 spells attention out in MatMul and Softmax: kernels are half
            reason="RoPE turns queries and keys in float32, as diffusers does",
        ),
    ),
    quantised=(
        Quantised(
            modules=r"transformer_blocks\.\d+\.(attn[12](\.to_(q|k|v|qkv|kv)|\.to_out\.0)?|ff\.net\.(0\.proj|2))",
            reason="nearly all of the work; their inputs are normalised or bounded",
        ),
    ),
    block=r"transformer_blocks\.(\d+)(?:\.|$)",
    edge_share=1 / 16,  # 1 of the demo model's 6, 2 of 28, 3 of 48
)

VAE = Policy(
    rules=(
        Rule(modules=r".*\.norm(\d|_out)?|.*\.conv_norm_out", reason="norms: sums of squares over the channels"),
        Rule(modules=r".*time_embedder(\..*)?", reason="timestep embedding: small, and every block is modulated by it"),
        Rule(
            modules=r"(en|de)coder\.conv_(in|out)(\.conv)?",
            operators=("Conv",),
            reason="the picture itself passes: 8 bits of it are more than bf16 keeps, and the work is small",
        ),
        Rule(modules=r"decoder|encoder", reason="(un)patchify and the timestep's scale: nothing to gain"),
    ),
    not_fp8="3D convolutions have no FP8 kernels in TensorRT, and the picture's last bits come from here",
)

LATENT_UPSAMPLER = Policy(
    rules=(Rule(modules=r".*norm\d?", reason="group norms: sums of squares over a whole clip"),),
    not_fp8="it is nearly all convolutions, which have no FP8 kernels in TensorRT",
)

POLICIES: Mapping[str, Policy] = {
    "text_encoder": TEXT_ENCODER,
    "transformer": TRANSFORMER,
    "vae_encoder": VAE,
    "vae_decoder": VAE,
    "latent_upsampler": LATENT_UPSAMPLER,
    **WEIGHTLESS,
}

DECODING: Mapping[str, Any] = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
# What the quality is measured on: another prompt and other noise than calibration has.
REQUEST: Mapping[str, Any] = {
    "prompt": "a yellow square drifts upwards, against a dark blue wall",
    "negative_prompt": NEGATIVE_PROMPT,
    "height": 96,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 8,
    "guidance_scale": 3.0,
    "seed": 7,
    "output_type": "np",
    **DECODING,
}
IMAGE_STEPS = 4
# An image of gradients for the VAE's encoder: nothing that a codec or a random seed could change.
RAMP = np.linspace(0, 255, REQUEST["height"], dtype=np.uint8)
IMAGE = np.stack(np.broadcast_arrays(RAMP[:, None], RAMP[None], RAMP[::-1, None]), axis=-1)


def clips(pipe: Pipeline, request: Mapping[str, Any]) -> list[Clip]:
    """A clip of text, one of an image (through the VAE's encoder), and one upscaled, where there is an upsampler."""
    from_image = {**request, "num_inference_steps": IMAGE_STEPS, "num_frames": 9}
    made = [
        pipe.generate(**request, pipeline="LTXPipeline"),
        pipe.generate(**from_image, image=IMAGE, pipeline="LTXImageToVideoPipeline"),
    ]
    if "latent_upsampler" in pipe.bundle.manifest.components:
        made.append(pipe.upscale(np.stack([IMAGE] * 9), seed=request["seed"], output_type="np", **DECODING))
    return [_frames(each) for each in made]


def _frames(result: Result) -> Clip:
    assert result.frames is not None
    frames: Clip = result.frames[0]
    return frames


def calibration(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests that end at the latents, one a size."""
    settings = {
        "negative_prompt": NEGATIVE_PROMPT,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "pipeline": "LTXPipeline",
    }
    return [
        {**settings, "height": height, "width": width, "num_frames": frames}
        for height, width, frames in ((96, 96, 17), (64, 160, 9))
    ]


TRIAL = Trial(request=REQUEST, clips=clips, calibration=calibration, prompts=CALIBRATION_PROMPTS, seeds=(0, 1))
