"""CogVideoX' precision policy: what stays in float32 and why, what FP8 takes, and what its quality is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.families.cogvideox.host import Host
from telecine.picture_quality import Clip
from telecine.pipeline import Pipeline
from telecine_export.families.t5 import TEXT_ENCODER
from telecine_export.families.weightless import POLICIES as WEIGHTLESS
from telecine_export.precision.policy import Policy, Quantised, Rule
from telecine_export.precision.trial import CALIBRATION_PROMPTS, Trial

TRANSFORMER = Policy(
    rules=(
        Rule(operators=("Attention",), half=True, reason="attention kernels are half precision, and sum in float32"),
        Rule(
            modules=r"(time|ofs)_(proj|embedding)(\..*)?",
            reason="a timestep of 1000 has steps of 0.5 in fp16 and of 4 in bf16, and every block is modulated by it",
        ),
        Rule(
            modules=r"patch_embed(\.proj)?|proj_out|norm_final|norm_out(\..*)?",
            reason="patchify, positions and output projections: all that is seen passes",
        ),
        Rule(modules=r"transformer", reason="tokens back to latents: nothing to gain"),
        Rule(
            modules=r"transformer_blocks\.\d+",
            reason="gates, and the residual stream that every block adds to: in 5b it passes fp16's range",
        ),
        Rule(
            modules=r".*\.norm(\d(\.norm)?|_q|_k)",
            reason="norms, and what modulates them: sums of squares over the width",
        ),
        Rule(
            modules=r".*\.attn1",
            operators=("Add", "Mul", "Sub"),  # opset 20 spells attention out in MatMul and Softmax: kernels are half
            reason="RoPE turns queries and keys in float32, as diffusers does",
        ),
    ),
    quantised=(
        Quantised(
            modules=r"transformer_blocks\.\d+\.(attn1(\.to_(q|k|v|qkv)|\.to_out\.0)?|ff\.net\.(0\.proj|2))",
            reason="nearly all of the work; their inputs are normalised or bounded",
        ),
    ),
    block=r"transformer_blocks\.(\d+)(?:\.|$)",
    edge_share=1 / 16,  # 2 of 30, 3 of 42
)

VAE = Policy(
    rules=(
        Rule(
            modules=r".*\.norm(\d|_out)?(\.norm_layer)?",
            reason="norms: sums of squares over a whole chunk, scaled and shifted by the latents",
        ),
        Rule(
            modules=r"(en|de)coder\.conv_(in|out)(\.conv)?",
            operators=("Conv",),
            reason="the picture itself passes: 8 bits of it are more than bf16 keeps, and the work is small",
        ),
    ),
    not_fp8="3D convolutions have no FP8 kernels in TensorRT, and the picture's last bits come from here",
)

POLICIES: Mapping[str, Policy] = {
    "text_encoder": TEXT_ENCODER,
    "transformer": TRANSFORMER,
    "vae_encoder": VAE,
    "vae_decoder": VAE,
    **WEIGHTLESS,
}

# What the quality is measured on: another prompt and other noise than calibration has.
REQUEST: Mapping[str, Any] = {
    "prompt": "a yellow square drifts upwards, against a dark blue wall",
    "negative_prompt": "worst quality, inconsistent motion, blurry",
    "height": 96,
    "width": 96,
    "num_frames": 17,  # the decoder's chunks of 3 and of 2 latents
    "num_inference_steps": 8,
    "guidance_scale": 6.0,
    "seed": 7,
    "output_type": "np",
}
# Of a video: the encoder's chunks of 8 frames, the decoder's of 2 latents, whole groups of every model.
VIDEO_FRAMES, VIDEO_STEPS, VIDEO_STRENGTH = 16, 4, 0.5


def clips(pipe: Pipeline, request: Mapping[str, Any]) -> list[Clip]:
    """A clip of text and one of a video; of a model that takes an image, a clip of one."""
    host = pipe.bundle.manifest.host
    made = [pipe.generate(**_fitted(host, request))]
    if not host["image_channels"]:
        of_video = {**request, "num_inference_steps": VIDEO_STEPS, "strength": VIDEO_STRENGTH}
        del of_video["num_frames"]
        still = _ramp(request["height"], request["width"])
        video = np.stack([np.roll(still, 4 * frame, axis=1) for frame in range(VIDEO_FRAMES)])
        made.append(pipe.generate(**of_video, video=video))
    frames = [each.frames for each in made]
    return [each[0] for each in frames if each is not None]


def calibration(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests that end at the latents, one a size; a model with a table of positions has one alone."""
    sizes = ({"height": 96, "width": 96, "num_frames": 17}, {"height": 64, "width": 160, "num_frames": 9})
    settings = {"num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "latent"}
    only = Host.parse(host).text_length is not None
    return [_fitted(host, {**settings, **size}) for size in sizes[: 1 if only else None]]


def _fitted(host: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as this model takes it: of the size that its table of positions is for, and with an image."""
    fitted = dict(request)
    if Host.parse(host).text_length is not None:
        fitted |= host["sample"]
    if host["image_channels"]:
        fitted["image"] = _ramp(fitted["height"], fitted["width"])
    return fitted


def _ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image of gradients: nothing that a codec or a random seed could change."""
    down, across = np.linspace(0, 255, height), np.linspace(0, 255, width)
    return np.stack(np.broadcast_arrays(down[:, None], across[None], down[::-1, None]), axis=-1).astype(np.uint8)


TRIAL = Trial(request=REQUEST, clips=clips, calibration=calibration, prompts=CALIBRATION_PROMPTS, seeds=(0, 1))
