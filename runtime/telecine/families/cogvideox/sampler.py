"""The steps of CogVideoX: one of diffusers' two schedulers, with what it keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from telecine.schedulers import cogvideox_ddim, cogvideox_dpm
from telecine.schedulers.cogvideox import DPM, CogVideoXSchedule

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
