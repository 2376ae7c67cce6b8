"""What `generate(second_stage=...)` asks: a low resolution first, upsampled, then a short second denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telecine.checks import check, check_range, first_given, is_number
from telecine.errors import RequestError
from telecine.upscale_request import check_adain_and_tone_map

# Of the upsampling, in every family.
UPSAMPLING = ("downscale_factor", "adain_factor", "tone_map_compression_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStage:
    """Settings of the upsampling, and of the denoising after it.

    `downscale_factor`: the first stage's sides, of those asked for. `refinement`: parameters of generate, those that
    the family lets a second denoising have of its own; where `denoise_strength` is one, it says how much of the steps
    is run, the last ones.

    Source: diffusers' documentation of LTX-Video 0.9.7 and of LTX-2; Lightricks' `LTXMultiScalePipeline`.
    """

    downscale_factor: float
    adain_factor: float
    tone_map_compression_ratio: float
    refinement: Mapping[str, Any]

    @classmethod
    def resolve(cls, *layers: object, defaults: Mapping[str, Any], refinement: Sequence[str]) -> SecondStage:
        """The first layer that gives a setting wins, then the family's `defaults`; layers of None give none.

        Raises:
            RequestError: a layer is no mapping, or a setting is unknown or out of range. (The rest of `refinement` is
                checked with the request.)
        """
        given = [_checked(layer, refinement) for layer in layers if layer is not None]
        settings = first_given(*given, defaults)
        own = {name: settings.pop(name) for name in refinement if name in settings}
        stage = cls(**settings, refinement=own)
        check_range("downscale_factor", stage.downscale_factor, 0.1, 1, "Use 2/3, or 1/2 for no final resize.")
        check_adain_and_tone_map(stage.adain_factor, stage.tone_map_compression_ratio)
        strength = own.get("denoise_strength", 0.5)
        check(
            is_number(strength) and 0 < strength < 1,
            f"denoise_strength of the second stage is {strength!r}",
            "above 0 and below 1, where the first stage's video would be lost",
            "Use 0.4, or 0.999 with a distilled model.",
        )
        return stage


def _checked(layer: object, refinement: Sequence[str]) -> Mapping[str, Any]:
    names = (*UPSAMPLING, *refinement)
    if isinstance(layer, Mapping) and set(layer) <= set(names):
        return layer
    raise RequestError(
        f"second_stage has {', '.join(map(str, layer)) if isinstance(layer, Mapping) else repr(layer)}",
        expected=f"a dict with some of {', '.join(names)}",
        fix="Use {} for the defaults.",
    )
