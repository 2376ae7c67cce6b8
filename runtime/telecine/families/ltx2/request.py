"""A request for a video with sound: what LTX-2 takes beside the parameters that families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.checks import MAX_FLOAT, check, check_range, floats, is_number, is_whole
from telecine.condition import MAX_CRF
from telecine.per_step import listed
from telecine.request import Request

# Of `LTX2Pipeline.__call__` and `LTX2ImageToVideoPipeline.__call__`; a length that is not given is no duration head's.
DEFAULTS: Mapping[str, Any] = {
    "height": 512,
    "width": 768,
    "num_frames": 121,
    "frame_rate": 24.0,
    "motion_speed": 1.0,
    "num_inference_steps": 30,
    "guidance_scale": 3.0,
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_stg_scale": 1.0,
    "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
    "spatio_temporal_guidance_blocks": [28],
    "noise_scale": 0.0,
    "num_videos_per_prompt": 1,
    "decode_timestep": 0.0,
    "use_cross_timestep": True,
    "output_type": "np",
    "max_sequence_length": 1024,
}
# `LTX2ConditionPipeline.__call__`'s: what is not given is the first of the sigmas, or 1.
CONDITION_DEFAULTS: Mapping[str, Any] = {name: value for name, value in DEFAULTS.items() if name != "noise_scale"}

_NO_ENHANCER = "The bundle has no language model that writes: give the prompt as it is to be."
_NO_DURATION_HEAD = "Nothing predicts a duration: pass num_frames."
# Parameters of diffusers' pipelines, or of other families', that cannot act here.
REFUSES: Mapping[str, str] = {
    "enable_prompt_enhancement": _NO_ENHANCER,
    "system_prompt": _NO_ENHANCER,
    "prompt_max_new_tokens": _NO_ENHANCER,
    "prompt_enhancement_kwargs": _NO_ENHANCER,
    "prompt_enhancement_seed": _NO_ENHANCER,
    "min_seconds": _NO_DURATION_HEAD,
    "max_seconds": _NO_DURATION_HEAD,
    "attention_kwargs": "A LoRA's scale is given with its file.",
    "stg_mode": "LTX-2's blocks know one perturbation, attention's values alone.",
    "stg_blocks": "Pass spatio_temporal_guidance_blocks.",
    "cfg_star": "Leave it out: LTX-2 guides clean latents, which are not scaled to each other.",
    "use_dynamic_cfg": "Pass guidance_scale as a list, one a step.",
    "strength": "Pass conditions=[Condition(video=..., strength=...)], or latents with sigmas and noise_scale.",
    "video": "Pass conditions=[Condition(video=...)].",
    "denoise_strength": "Pass latents with sigmas and a noise_scale as large as the first of them.",
    "image_cond_noise_scale": "Leave it out, or hold a condition by a strength below 1.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LTX2Request(Request):
    """One call of `generate` for LTX-2, with diffusers' names.

    `motion_speed` below 1 is slow motion: the transformer is told of more frames a second. `noise_scale` is the share
    of noise that given latents begin with. Of the sound's scales, 0 means the video's, as in diffusers. `shift_sigmas`
    is no parameter of `generate`: a second stage takes its sigmas as they are, whatever the model's scheduler does.
    """

    sigmas: Sequence[float] | None = None
    motion_speed: float = 1.0
    modality_scale: float | Sequence[float] = 1.0
    audio_guidance_scale: float | Sequence[float] | None = None
    audio_stg_scale: float | Sequence[float] | None = None
    audio_modality_scale: float | Sequence[float] | None = None
    audio_guidance_rescale: float | Sequence[float] | None = None
    spatio_temporal_guidance_blocks: Sequence[int] | None = None
    noise_scale: float | None = None
    audio_latents: npt.NDArray[Any] | None = None
    use_cross_timestep: bool = True
    image_crf: int | None = None
    shift_sigmas: bool = True

    # Not super(): a dataclass with slots is made anew, and its methods' own class is the old one.
    def _check_numbers(self) -> None:
        Request._check_numbers(self)
        check(
            is_number(self.motion_speed) and self.motion_speed > 0,
            f"motion_speed is {self.motion_speed!r}",
            "a number above 0",
            "Use 1 for real time, 0.2 for slow motion.",
        )
        if self.noise_scale is not None:
            check_range("noise_scale", self.noise_scale, 0, 1, "Use 0 to keep given latents as they are.")
        check(
            isinstance(self.use_cross_timestep, bool),
            f"use_cross_timestep is {self.use_cross_timestep!r}",
            "True (LTX-2.3) or False (2.0)",
            "Use one of them.",
        )
        check(
            self.image_crf is None or (is_whole(self.image_crf) and 0 <= self.image_crf <= MAX_CRF),
            f"image_crf is {self.image_crf!r}",
            f"a whole number from 0 to {MAX_CRF}",
            "Use 0 to leave the image as it is.",
        )

    def _check_guidance(self) -> None:
        Request._check_guidance(self)
        for name, low, high in (
            ("modality_scale", -MAX_FLOAT, MAX_FLOAT),
            ("audio_guidance_scale", -MAX_FLOAT, MAX_FLOAT),
            ("audio_stg_scale", 0, MAX_FLOAT),
            ("audio_modality_scale", -MAX_FLOAT, MAX_FLOAT),
            ("audio_guidance_rescale", 0, 1),
        ):
            value = getattr(self, name)
            right = value is None or all(is_number(item) and low <= item <= high for item in listed(value) or [value])
            check(
                right,
                f"{name} is {value!r}",
                f"a number from {low:g} to {high:g}, or a list of such",
                "Leave it out for the usual.",
            )
        blocks = self.spatio_temporal_guidance_blocks
        row = [] if blocks is None else listed(blocks)
        check(
            row is not None and all(map(is_whole, row)),
            f"spatio_temporal_guidance_blocks is {blocks!r}",
            "a list of block indexes",
            "Pass [28] for LTX-2.3.",
        )

    def _check_arrays(self) -> None:
        Request._check_arrays(self)
        if self.audio_latents is not None:
            floats("audio_latents", self.audio_latents)

    @property
    def conditioning_frame_rate(self) -> float:
        """Frames a second that the transformer is told; the sound lasts as long as the video does at `frame_rate`.

        Source: diffusers `pipelines.ltx2.utils.conditioning_frame_rate`.
        """
        return self.frame_rate / self.motion_speed

    def share_of_noise(self, *, conditioned: bool) -> float:
        """The share of noise that given latents begin with, which `LTX2ConditionPipeline` takes from its sigmas."""
        if self.noise_scale is not None:
            return float(self.noise_scale)
        assert conditioned, "the other pipelines have a default"
        return float(self.sigmas[0]) if self.sigmas is not None else 1.0


def checked_latents(name: str, latents: npt.NDArray[Any], shape: tuple[int, ...], layout: str) -> np.ndarray:
    """Latents that a caller passed, float32, which must have this shape.

    Raises:
        RequestError: another shape, or values that are not finite.
    """
    array = np.ascontiguousarray(latents, dtype=np.float32)
    check(
        array.shape == shape,
        f"{name} have shape {array.shape}",
        f"{shape}: {layout}",
        "Pass what output_type='latent' gives, or fit height, width, num_frames and frame_rate to them.",
    )
    check(bool(np.isfinite(array).all()), f"{name} hold NaN or infinity", "finite numbers", "Look at what made them.")
    return array
