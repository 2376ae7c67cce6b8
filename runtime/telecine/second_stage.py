"""What `generate(second_stage=...)` asks: a low resolution first, upsampled, then a short second denoising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telecine.checks import check, check_range, first_given, is_number
from telecine.errors import RequestError
from telecine.upscale_request import check_adain_and_tone_map

# Parameters of generate that the second denoising may have of its own; those that it is not given are the first's.
REFINEMENT = (
    "denoise_strength", "num_inference_steps", "timesteps", "guidance_scale", "guidance_rescale", "guidance_sigmas",
    "cfg_star", "stg_scale", "stg_mode", "stg_blocks", "image_cond_noise_scale",
)  # fmt: skip
# LTX-Video 0.9.7 dev's.
DEFAULTS: Mapping[str, Any] = {
    "downscale_factor": 2 / 3,
    "adain_factor": 0.0,
    "tone_map_compression_ratio": 0.0,
    "denoise_strength": 0.4,
    "num_inference_steps": 10,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStage:
    """Settings of the upsampling, and of the denoising after it.

    `downscale_factor`: the first stage's sides, of those asked for. `refinement`: parameters of generate (some of
    `REFINEMENT`), of which `denoise_strength` says how much of the steps is run, the last ones.

    Source: diffusers' documentation of LTX-Video 0.9.7; Lightricks' `LTXMultiScalePipeline`.
    """

    downscale_factor: float
    adain_factor: float
    tone_map_compression_ratio: float
    refinement: Mapping[str, Any]

    @classmethod
    def resolve(cls, *layers: object) -> SecondStage | None:
        """None where no layer is given; else the first layer that gives a setting wins, then `DEFAULTS`.

        Raises:
            RequestError: a layer is no mapping, or a setting is unknown or out of range. (The rest of `refinement` is
                checked with the request.)
        """
        given = [_checked(layer) for layer in layers if layer is not None]
        if not given:
            return None
        settings = first_given(*given, DEFAULTS)
        refinement = {name: settings.pop(name) for name in REFINEMENT if name in settings}
        stage = cls(**settings, refinement=refinement)
        check_range("downscale_factor", stage.downscale_factor, 0.1, 1, "Use 2/3, or 1/2 for no final resize.")
        check_adain_and_tone_map(stage.adain_factor, stage.tone_map_compression_ratio)
        strength = refinement["denoise_strength"]
        check(
            is_number(strength) and 0 < strength < 1,
            f"denoise_strength of the second stage is {strength!r}",
            "above 0 and below 1, where the first stage's video would be lost",
            "Use 0.4, or 0.999 with a distilled model.",
        )
        return stage


def _checked(layer: object) -> Mapping[str, Any]:
    names = dict.fromkeys((*DEFAULTS, *REFINEMENT))
    if isinstance(layer, Mapping) and set(layer) <= set(names):
        return layer
    raise RequestError(
        f"second_stage has {', '.join(map(str, layer)) if isinstance(layer, Mapping) else repr(layer)}",
        expected=f"a dict with some of {', '.join(names)}",
        fix="Use {} for the defaults.",
    )
