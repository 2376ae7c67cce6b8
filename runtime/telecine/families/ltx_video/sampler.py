"""The steps of LTX-Video: along a flow, keeping what a run is conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.conditioning import Conditioning
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, Schedule

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSampler:
    """Steps of (B, T, C) latents along a schedule (`telecine.denoise.Sampler`).

    `conditioning` keeps tokens. `draw_noise` gives the (B, T, C) noise of what a step moves, where the scheduler
    samples stochastically.
    """

    config: FlowMatchEulerConfig
    schedule: Schedule
    conditioning: Conditioning
    draw_noise: Callable[[], Array] | None = None

    @property
    def sigmas(self) -> Array:
        return self.schedule.sigmas[:-1]

    def prepare(self, index: int, latents: Array) -> Array:
        return self.conditioning.prepare(latents, self.schedule.timesteps[index])

    def timesteps(self, index: int) -> np.float32 | Array:
        return self.conditioning.token_timesteps(self.schedule.timesteps[index])

    def step(self, index: int, prediction: Array, latents: Array) -> Array:
        noise = self.draw_noise() if self.draw_noise else None
        return self.conditioning.step(self.config, self.schedule, index, prediction, latents, noise)
