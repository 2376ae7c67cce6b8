"""Latents made larger: to which size, and what happens after: statistics matched, extremes compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsamplerFactors:
    """How many times larger (1 or 2) the latent upsampler makes the sides of latents, and the steps between frames."""

    spatial: int
    temporal: int

    @classmethod
    def parse(cls, told: Mapping[str, int] | None) -> UpsamplerFactors | None:
        """Of the manifest's `upsampler`, where a bundle has one."""
        return None if told is None else cls(spatial=told["spatial_factor"], temporal=told["temporal_factor"])

    def enlarged(self, latent: LatentShape) -> LatentShape:
        """What it makes of latents; the first one stands for one frame, and stays one."""
        return LatentShape(
            frames=self.temporal * (latent.frames - 1) + 1,
            height=self.spatial * latent.height,
            width=self.spatial * latent.width,
        )

    def check_two_stages(self) -> None:
        """
        Raises:
            BundleError: it is no upsampler that doubles the sides, and no more.
        """
        if (self.spatial, self.temporal) != (2, 1):
            raise BundleError(
                f"this bundle's upsampler enlarges {self.spatial} times in space and {self.temporal} in time",
                expected="2 and 1 for two stages: a spatial upsampler",
                fix="Export again with a spatial upscaler; this one serves upscale().",
            )


def required(factors: UpsamplerFactors | None) -> UpsamplerFactors:
    """
    Raises:
        BundleError: the bundle has no latent upsampler.
    """
    if factors is None:
        raise BundleError(
            "this bundle has no latent_upsampler",
            expected="one, to upscale with",
            fix="Export it again with: telecine export SOURCE BUNDLE --upscaler UPSCALER",
        )
    return factors


def adain(latents: Array, reference: Array, factor: float) -> Array:
    """Give (B, C, ...) latents the mean and deviation that (B, C, ...) `reference` has in each channel of each video.

    `factor` 0 leaves them as they are, 1 matches them fully. Deviations are unbiased: a channel needs two values.

    Source: Huang and Belongie 2017; diffusers `LTXLatentUpsamplePipeline.adain_filter_latent`.
    """
    mean, deviation = _statistics(latents)
    wanted_mean, wanted_deviation = _statistics(reference)
    matched = np.subtract(latents, mean, dtype=np.float32)
    matched /= deviation
    matched *= wanted_deviation
    matched += wanted_mean
    return _lerp(latents, matched, factor)


def tone_map(latents: Array, compression: float) -> Array:
    """Shrink the large values of latents of any shape; `compression` is 0 (not at all) to 1.

    x (1 - 0.8 k sigmoid(4 k (|x| - 1))), k = 0.75 compression.

    Source: diffusers `LTXLatentUpsamplePipeline.tone_map_latents`.
    """
    k = 0.75 * compression
    scales = np.abs(latents)
    scales -= np.float32(1)
    scales *= np.float32(-4 * k)
    np.exp(scales, out=scales)  # at most e**3: |x| - 1 is -1 or more
    scales += np.float32(1)
    np.divide(np.float32(-0.8 * k), scales, out=scales)
    scales += np.float32(1)
    scales *= latents
    return scales


def _statistics(latents: Array) -> tuple[Array, Array]:
    """Mean and unbiased deviation over all axes but the first two, kept as 1; summed in float64, as by torch."""
    axes = tuple(range(2, latents.ndim))
    mean = latents.mean(axes, dtype=np.float64, keepdims=True)
    deviation = latents.std(axes, dtype=np.float64, ddof=1, keepdims=True)
    return mean.astype(np.float32), deviation.astype(np.float32)


def _lerp(start: Array, end: Array, weight: float) -> Array:
    """From start (0) to end (1), by the form that is exact at the nearer of the two (torch.lerp)."""
    span = end - start
    if abs(weight) < 0.5:
        span *= np.float32(weight)
        return np.add(start, span, out=span)
    span *= np.float32(1 - weight)
    return np.subtract(end, span, out=span)
