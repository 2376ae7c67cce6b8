"""What `generate(second_stage=...)` asks: a low resolution first, upsampled, then a short second denoising."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telecine.checks import MAX_FLOAT, check, check_range, first_given, floats, is_number, is_whole
from telecine.errors import RequestError
from telecine.upscale_request import check_adain_and_tone_map


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStage:
    """Settings of upsampling and second denoising; the defaults are those of LTX-Video 0.9.7 dev.

    `downscale_factor`: the first stage's sides, of those asked for. `num_inference_steps` or `timesteps`, of which the
    last `denoise_strength` is run. Guidance that is None is the first stage's.

    Source: diffusers' documentation of LTX-Video 0.9.7; Lightricks' `LTXMultiScalePipeline`.
    """

    downscale_factor: float = 2 / 3
    adain_factor: float = 0.0
    tone_map_compression_ratio: float = 0.0
    denoise_strength: float = 0.4
    num_inference_steps: int = 10
    timesteps: Sequence[float] | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    stg_scale: float | None = None

    @classmethod
    def resolve(cls, *layers: object) -> SecondStage | None:
        """None where no layer is given; else the first layer that gives a setting wins.

        Raises:
            RequestError: a layer is no mapping, or a setting is unknown, of the wrong kind or out of range.
        """
        given = [layer for layer in layers if layer is not None]
        if not given:
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        mappings: list[Mapping[str, Any]] = []
        for layer in given:
            if not isinstance(layer, Mapping) or not set(layer) <= set(names):
                got = ", ".join(map(str, layer)) if isinstance(layer, Mapping) else repr(layer)
                raise RequestError(
                    f"second_stage has {got}",
                    expected=f"a dict with some of {', '.join(names)}",
                    fix="Use {} for the defaults.",
                )
            mappings.append(layer)
        stage = cls(**first_given(*mappings))
        stage._check()
        return stage

    def _check(self) -> None:
        check_range("downscale_factor", self.downscale_factor, 0.1, 1, "Use 2/3, or 1/2 for no final resize.")
        check_adain_and_tone_map(self.adain_factor, self.tone_map_compression_ratio)
        strength = self.denoise_strength
        check(
            is_number(strength) and 0 < strength < 1,
            f"denoise_strength of the second stage is {strength!r}",
            "above 0 and below 1, where the first stage's video would be lost",
            "Use 0.4, or 0.999 with a distilled model.",
        )
        check(
            is_whole(self.num_inference_steps) and self.num_inference_steps > 0,
            f"num_inference_steps of the second stage is {self.num_inference_steps!r}",
            "a whole number, at least 1",
            "Use 10.",
        )
        ranges = {"guidance_scale": (-MAX_FLOAT, MAX_FLOAT), "guidance_rescale": (0, 1), "stg_scale": (0, MAX_FLOAT)}
        for name, (low, high) in ranges.items():
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low, high, "Leave it out for the first stage's.")
        if self.timesteps is not None:  # their values are the scheduler's to check
            shape = floats("timesteps", self.timesteps).shape
            check(len(shape) == 1 and shape[0] > 0, f"timesteps is {self.timesteps!r}", "a list", "Use 909, 725, 421.")
        steps = self.num_inference_steps if self.timesteps is None else len(self.timesteps)
        check(
            int(steps * strength) >= 1,
            f"a second stage of {strength} of {steps} steps",
            "at least one whole step",
            "Raise denoise_strength or the number of steps.",
        )
