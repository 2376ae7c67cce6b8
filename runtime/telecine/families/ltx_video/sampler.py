"""The steps of LTX-Video: along a flow, keeping what a run is conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.conditioning import Conditioning
from telecine.linear_step import LinearStep
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

    @property
    def anchor(self) -> Array | None:
        return self.conditioning.initial

    def linear_preparation(self, index: int) -> LinearStep | None:
        return self.conditioning.linear_preparation(self.schedule.timesteps[index])

    def linear_step(self, index: int) -> LinearStep:
        """x + (s' - s) v, or (1 - s') (x - s v) + s' noise; tokens that do not move keep their x."""
        start, end, moves = (np.asarray(each) for each in self.conditioning.span(self.config, self.schedule, index))
        if not self.config.stochastic_sampling:
            return LinearStep(
                prediction=np.where(moves, end - start, 0), denoised_prediction=np.where(moves, -start, 0)
            )
        return LinearStep(
            sample=np.where(moves, 1 - end, 1),
            prediction=np.where(moves, (end - 1) * start, 0),
            noise=np.where(moves, end, 0),
            denoised_prediction=np.where(moves, -start, 0),
            draw=self._draw_full,
        )

    def _draw_full(self) -> Array:
        assert self.draw_noise is not None
        return self.conditioning.full_noise(self.draw_noise())
