"""The steps of CogVideoX: one of diffusers' two schedulers, with what it keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from telecine.linear_step import LinearStep
from telecine.schedulers import cogvideox_ddim, cogvideox_dpm
from telecine.schedulers.cogvideox import DPM, CogVideoXSchedule, original_weights

Array = npt.NDArray[np.float32]


class CogVideoXSampler:
    """Steps of (B, F, C, H, W) latents along a schedule, for one run (`telecine.denoise.Sampler`).

    `draw_noise` draws noise of the latents' shape; only DPM does.
    """

    def __init__(self, class_name: str, schedule: CogVideoXSchedule, draw_noise: Callable[[], Array]) -> None:
        self._dpm, self._schedule, self._draw_noise = class_name == DPM, schedule, draw_noise
        self._original: Array | None = None  # the clean latents that the step before predicted
        self.sigmas = schedule.sigmas

    def prepare(self, index: int, latents: Array) -> Array:
        return latents

    def timesteps(self, index: int) -> np.float32:
        return np.float32(self._schedule.timesteps[index])

    def step(self, index: int, prediction: Array, latents: Array) -> Array:
        if not self._dpm:
            return cogvideox_ddim.step(self._schedule, index, prediction, latents)
        latents, self._original = cogvideox_dpm.step(
            self._schedule, index, prediction, latents, before=self._original, draw_noise=self._draw_noise
        )
        return latents

    @property
    def anchor(self) -> None:
        return None

    def linear_preparation(self, index: int) -> None:
        return None

    def linear_step(self, index: int) -> LinearStep:
        """Both schedulers weigh the sample and the clean one; DPM also noise, and the step before's clean one."""
        of_sample, of_prediction = original_weights(self._schedule, index)
        if not self._dpm:
            kept, added = cogvideox_ddim.coefficients(self._schedule, index)
            return LinearStep(
                sample=kept + added * of_sample,
                prediction=added * of_prediction,
                denoised_sample=of_sample,
                denoised_prediction=of_prediction,
            )
        weights = cogvideox_dpm.coefficients(self._schedule, index)
        original = -np.float64(weights.original)
        return LinearStep(
            sample=weights.sample + original * weights.now * of_sample,
            prediction=original * weights.now * of_prediction,
            noise=weights.noise,
            anchor=-original * weights.before,
            draw=self._draw_twice if index and not self._schedule.ends(index) else self._draw_noise,
            denoised_sample=of_sample,
            denoised_prediction=of_prediction,
        )

    def _draw_twice(self) -> Array:
        """Noise, after a draw that diffusers drops."""
        self._draw_noise()
        return self._draw_noise()
