"""Guidance: how several predictions of the network become one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Classifier-free guidance of a request: `scale` above 1 turns it on, `rescale` in [0, 1] mixes the rescaling in.

    Source: diffusers `LTXPipeline.guidance_scale`, `guidance_rescale`, `do_classifier_free_guidance`.
    """

    scale: float
    rescale: float = 0.0

    @property
    def passes(self) -> int:
        """How many times the network runs on each video: [negative, positive], or once."""
        return 2 if self.scale > 1 else 1

    def combine(self, velocities: Array) -> Array:
        """(passes * B, T, C) velocities, negative first → (B, T, C)."""
        if self.passes == 1:
            return velocities
        uncond, cond = np.split(velocities, 2)
        guided = classifier_free(uncond, cond, self.scale)
        return rescale(guided, cond, self.rescale) if self.rescale > 0 else guided


def classifier_free(uncond: Array, cond: Array, scale: float) -> Array:
    """Extrapolate from two predictions (B, ...), float32: u + scale (c - u), bit for bit torch's.

    Source: Ho and Salimans 2022; diffusers `LTXPipeline.__call__`.
    """
    assert uncond.shape == cond.shape
    out = np.subtract(cond, uncond, dtype=np.float32)
    out *= np.float32(scale)
    out += uncond
    return out


def rescale(guided: Array, cond: Array, phi: float) -> Array:
    """Pull the spread of a guided prediction (B, ...) back to that of `cond`, by a factor phi in 0..1.

    The standard deviations are unbiased, over all axes but the batch.

    Source: Lin et al. 2023, section 3.4; diffusers `rescale_noise_cfg`.
    """
    ratio = _deviation(cond) / _deviation(guided)
    # phi * (g * ratio) + (1 - phi) * g, as one multiplication of the large array.
    factor = (phi * ratio + (1 - phi)).astype(np.float32)
    return np.multiply(guided, factor.reshape(-1, *[1] * (guided.ndim - 1)), dtype=np.float32)


def _deviation(values: Array) -> npt.NDArray[np.float64]:
    """(B,) unbiased standard deviations of (B, ...), accumulated in float64."""
    return np.std(values.reshape(len(values), -1), axis=1, ddof=1, dtype=np.float64)
