"""A request to upscale: every parameter of `Pipeline.upscale`, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.checks import check, check_output_type, check_range, floats, is_number, numbers_of, seeds_of
from telecine.request import MAX_PIXELS
from telecine.tiling.options import TilingParameters

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest(TilingParameters):
    """One call of `upscale`, with diffusers' names; `video` is whatever `load_frames` takes."""

    video: Any = None
    latents: Array | None = None
    height: int | None = None
    width: int | None = None
    frame_rate: float | None = None
    adain_factor: float
    tone_map_compression_ratio: float
    decode_timestep: float | Sequence[float]
    decode_noise_scale: float | Sequence[float] | None = None
    seed: int | Sequence[int] | None = None
    output_type: str

    @classmethod
    def resolve(cls, asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> UpscaleRequest:
        """What was asked, and the defaults for what was not.

        Raises:
            RequestError: a value is of the wrong kind or out of range, or two contradict each other.
        """
        request = cls(**{**defaults, **{name: value for name, value in asked.items() if value is not None}})
        check(
            (request.video is None) != (request.latents is None),
            "both video and latents" if request.video is not None else "neither video nor latents",
            "one of the two",
            "Pass a video, or what generate or upscale returned for output_type='latent'.",
        )
        check_adain_and_tone_map(request.adain_factor, request.tone_map_compression_ratio)
        rate = request.frame_rate
        check(
            rate is None or (is_number(rate) and rate > 0),
            f"frame_rate is {rate!r}",
            "a number above 0",
            "Use 24 or 25.",
        )
        check_output_type(request.output_type)
        request.tiling_options()
        if request.latents is not None:
            shape = floats("latents", request.latents).shape
            check(
                len(shape) == 5 and 0 not in shape,
                f"latents have shape {shape}",
                "(videos, channels, frames, height, width): normalised, not packed",
                "Pass what output_type='latent' of upscale or LTXConditionPipeline returns.",
            )
        return request

    @property
    def videos(self) -> int:
        """B: how many videos are upscaled."""
        return 1 if self.latents is None else len(self.latents)

    def seeds(self) -> tuple[int, ...]:
        """One seed for all videos, or one a video; a fresh random one where none is given.

        Raises:
            RequestError: a list of another length.
        """
        return seeds_of(self.seed, self.videos)

    def per_video(self, name: str, value: float | Sequence[float]) -> npt.NDArray[np.float32]:
        """(B,) float32 of a parameter that is given once or per video.

        Raises:
            RequestError: not finite numbers, or another count.
        """
        return np.broadcast_to(numbers_of(name, value, {1, self.videos}), (self.videos,)).copy()

    def check_pixels(self, frames: int, height: int, width: int) -> None:
        """
        Raises:
            RequestError: more pixels than any machine has memory for.
        """
        check(
            frames * height * width <= MAX_PIXELS,
            f"{frames} frames of {width} x {height}",
            f"at most {MAX_PIXELS} pixels in all",
            "Ask for a smaller size.",
        )


def check_adain_and_tone_map(adain_factor: object, tone_map_compression_ratio: object) -> None:
    """
    Raises:
        RequestError: not numbers in their range.
    """
    # diffusers takes no notice of a negative factor.
    check_range("adain_factor", adain_factor, 0, 10, "Use 0 for none, 1 to match fully.")
    check_range("tone_map_compression_ratio", tone_map_compression_ratio, 0, 1, "Use 0 for none; 0.6 is usual.")
