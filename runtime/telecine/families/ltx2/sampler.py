"""The steps of LTX-2: video and sound along a flow each, keeping what a run is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.families.ltx2.modalities import AudioVideo, Told, velocity
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, Schedule, step

Array = npt.NDArray[np.float32]
ONE = np.float32(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """Tokens of the video that a run keeps: by strengths (T,) from 0 to 1 at clean latents (1 or B, T, C).

    Where the strength is 0, `latents` may be anything finite.

    Source: diffusers `LTX2ConditionPipeline.prepare_latents`; its `conditioning_mask` and `clean_latents`.
    """

    strengths: Array
    latents: Array

    def timesteps(self, timestep: np.float32) -> Array:
        """(T,) what the network is told: a token that is held is cleaner than the others."""
        return timestep * (ONE - self.strengths)

    def mix(self, predicted: Array) -> Array:
        """(B, T, C) clean latents as predicted → the same, with what is held in its place."""
        held = self.strengths[:, np.newaxis]
        return predicted * (ONE - held) + self.latents * held


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioVideoSampler:
    """Steps of both modalities' tokens along a schedule each (`telecine.denoise.Sampler`).

    Predictions are of clean latents (`modalities.clean`). The sound is held by nothing.

    Source: diffusers `LTX2Pipeline.__call__`, and those of its image-to-video and condition pipelines.
    """

    config: FlowMatchEulerConfig
    schedule: Schedule
    audio_schedule: Schedule
    held: Held | None = None

    @property
    def sigmas(self) -> Array:
        return self.schedule.sigmas[:-1]

    def prepare(self, index: int, latents: AudioVideo) -> AudioVideo:
        return latents

    def timesteps(self, index: int) -> Told:
        timestep = self.schedule.timesteps[index]
        return Told(
            timesteps=np.atleast_1d(timestep) if self.held is None else self.held.timesteps(timestep),
            timestep=timestep,
            audio_timestep=self.audio_schedule.timesteps[index],
            sigma=self.schedule.sigmas[index],
            audio_sigma=self.audio_schedule.sigmas[index],
        )

    def step(self, index: int, prediction: AudioVideo, latents: AudioVideo) -> AudioVideo:
        video = prediction.video if self.held is None else self.held.mix(prediction.video)
        return AudioVideo(
            self._moved(self.schedule, index, video, latents.video),
            self._moved(self.audio_schedule, index, prediction.audio, latents.audio),
        )

    def _moved(self, schedule: Schedule, index: int, predicted: Array, latents: Array) -> Array:
        return step(self.config, schedule, index, velocity(predicted, latents, schedule.sigmas[index]), latents)
