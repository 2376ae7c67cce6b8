"""What happens to latents after the upsampler: statistics matched to those before it, extremes compressed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


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
