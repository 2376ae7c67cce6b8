"""Frames that a run is given: how they enter the latents, and how the denoising keeps them.

Axes: B videos, C channels, F H W latent frames, height, width, T = F·H·W tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from telecine.linear_step import LinearStep
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, Schedule, step
from telecine.schedulers.token_step import step_tokens, token_sigmas

Array = npt.NDArray[np.float32]

# Latent frames of a keyframe video that become extra tokens; those after them are put in place.
PREFIX_LATENT_FRAMES = 2
ONE = np.float32(1)
SAME = np.float32(1e-6)  # timesteps (as sigmas) and strengths this close are one


class Span(NamedTuple):
    """The sigmas that a step goes from and to, and whether it moves; each for all tokens, or (T,) with one a token."""

    start: npt.ArrayLike
    end: npt.ArrayLike
    moves: npt.ArrayLike


class Conditioning:
    """What the denoising keeps of its latents: here nothing, as in text to video."""

    timestep_tokens = 1  # timesteps that the network is told of each video: one, or one a token

    def prepare(self, latents: Array, timestep: np.float32) -> Array:
        """The (B, T, C) latents that a step starts from, where the conditioning changes them before."""
        return latents

    def token_timesteps(self, timestep: np.float32) -> np.float32 | Array:
        """What the network is told: a timestep 0..1000, or (T,) of them."""
        return timestep

    def step(
        self,
        config: FlowMatchEulerConfig,
        schedule: Schedule,
        index: int,
        velocity: Array,
        latents: Array,
        noise: Array | None,
    ) -> Array:
        """(B, T, C) latents after the step; what is kept stays as it is."""
        return step(config, schedule, index, velocity, latents, noise=noise)

    @property
    def initial(self) -> Array | None:
        """The (B, T, C) latents that `linear_preparation` brings back."""
        return None

    def linear_preparation(self, timestep: np.float32) -> LinearStep | None:
        """`prepare` as a linear form; None where it changes nothing."""
        return None

    def span(self, config: FlowMatchEulerConfig, schedule: Schedule, index: int) -> Span:
        """Where step `index` leads."""
        return Span(schedule.sigmas[index], schedule.sigmas[index + 1], np.True_)

    def full_noise(self, noise: Array) -> Array:
        """A stochastic step's noise as (B, T, C), with anything at tokens that it does not move."""
        return noise


class FirstFrame(Conditioning):
    """The first latent frame is kept: the network is told that it is clean, and only the others are stepped.

    `noise` of a stochastic step is that of the others, (B, T - H·W, C).

    Source: diffusers `LTXImageToVideoPipeline.__call__`.
    """

    def __init__(self, *, frame_tokens: int, tokens: int) -> None:
        self.timestep_tokens = tokens
        self._kept = frame_tokens

    def token_timesteps(self, timestep: np.float32) -> Array:
        timesteps = np.full(self.timestep_tokens, timestep, np.float32)
        timesteps[: self._kept] = 0
        return timesteps

    def step(
        self,
        config: FlowMatchEulerConfig,
        schedule: Schedule,
        index: int,
        velocity: Array,
        latents: Array,
        noise: Array | None,
    ) -> Array:
        kept = self._kept
        moved = step(config, schedule, index, velocity[:, kept:], latents[:, kept:], noise=noise)
        return np.concatenate([latents[:, :kept], moved], axis=1)

    def span(self, config: FlowMatchEulerConfig, schedule: Schedule, index: int) -> Span:
        return Span(schedule.sigmas[index], schedule.sigmas[index + 1], np.arange(self.timestep_tokens) >= self._kept)

    def full_noise(self, noise: Array) -> Array:
        kept = np.zeros((len(noise), self._kept, noise.shape[2]), np.float32)
        return np.concatenate([kept, noise], axis=1)


class TokenStrengths(Conditioning):
    """Each token is held by a strength from 0 to 1: it joins the denoising when the noise falls to 1 - strength.

    `strengths`: (T,), or (1,) where no token is held. `draw_noise` draws (B, T, C) before every step, of which tokens
    held by 1 get `noise_scale` times the squared sigma, on top of what they were at first: this keeps motion alive
    around them.

    Source: diffusers `LTXConditionPipeline.__call__` and `add_noise_to_image_conditioning_latents`.
    """

    def __init__(
        self,
        strengths: Array,
        *,
        initial: Array | None = None,
        noise_scale: float = 0.0,
        draw_noise: Callable[[], Array] | None = None,
    ) -> None:
        self.timestep_tokens = len(strengths)
        self._strengths, self._initial = strengths, initial
        self._noise_scale, self._draw_noise = np.float32(noise_scale), draw_noise

    def prepare(self, latents: Array, timestep: np.float32) -> Array:
        if self._draw_noise is None or self._initial is None:
            return latents
        sigma = timestep / np.float32(1000)
        noised = self._draw_noise()
        noised *= self._noise_scale
        noised *= sigma * sigma
        return np.where(self._held[:, np.newaxis], noised + self._initial, latents)

    @property
    def _held(self) -> npt.NDArray[np.bool_]:
        held: npt.NDArray[np.bool_] = self._strengths > ONE - SAME
        return held

    @property
    def initial(self) -> Array | None:
        return self._initial

    def linear_preparation(self, timestep: np.float32) -> LinearStep | None:
        if self._draw_noise is None or self._initial is None:
            return None
        sigma = timestep / np.float32(1000)
        return LinearStep(
            sample=~self._held, noise=self._held * (self._noise_scale * (sigma * sigma)), anchor=self._held,
            draw=self._draw_noise,
        )  # fmt: skip

    def token_timesteps(self, timestep: np.float32) -> Array:
        return np.minimum(timestep, (ONE - self._strengths) * np.float32(1000))

    def step(
        self,
        config: FlowMatchEulerConfig,
        schedule: Schedule,
        index: int,
        velocity: Array,
        latents: Array,
        noise: Array | None,
    ) -> Array:
        timestep = schedule.timesteps[index]
        moved = step_tokens(config, schedule, self.token_timesteps(timestep), velocity, latents, noise=noise)
        return np.where(self._joined(timestep)[:, np.newaxis], moved, latents)

    def span(self, config: FlowMatchEulerConfig, schedule: Schedule, index: int) -> Span:
        timestep = schedule.timesteps[index]
        return Span(*token_sigmas(config, schedule, self.token_timesteps(timestep)), self._joined(timestep))

    def _joined(self, timestep: np.float32) -> npt.NDArray[np.bool_]:
        joined: npt.NDArray[np.bool_] = timestep / np.float32(1000) - SAME < ONE - self._strengths
        return joined


class Canvas:
    """Noise (B, C, F, H, W) that conditions are put on, with the frames of keyframes in front of it.

    `latents` (B, C, E + F, H, W), `strengths` (E + F,) and `first_frames` (E + F,), the pixel frame at which each
    latent frame begins, are what the denoising starts from; the first `extra_frames`, E, are no part of the clip.

    Source: diffusers `LTXConditionPipeline.prepare_latents`.
    """

    def __init__(self, noise: Array, temporal_ratio: int) -> None:
        self._main = noise
        self._main_strengths = np.zeros(noise.shape[2], np.float32)
        self._ratio = temporal_ratio
        self._extra: list[Array] = []
        self._extra_strengths: list[Array] = []
        self._extra_first_frames: list[npt.NDArray[np.int64]] = []

    def add(
        self, condition: Array, *, frame_index: int, strength: float, draw_noise: Callable[[tuple[int, ...]], Array]
    ) -> None:
        """Put a condition, (B, C, f, H, W) latents, at a pixel frame; a later one covers an earlier one.

        At frame 0 it is mixed into the noise in place. Elsewhere its first frames become extra ones, each video's
        mixed with noise of its own that `draw_noise(shape)` gives, and those after them are mixed in in place.
        """
        if frame_index == 0:
            self._mix(0, condition, strength)
            return
        prefix, rest = condition[:, :, :PREFIX_LATENT_FRAMES], condition[:, :, PREFIX_LATENT_FRAMES:]
        self._mix(frame_index // self._ratio + PREFIX_LATENT_FRAMES, rest, strength)
        self._extra.append(lerp(draw_noise(prefix.shape), prefix, strength))
        self._extra_strengths.append(np.full(prefix.shape[2], strength, np.float32))
        self._extra_first_frames.append(first_frames(prefix.shape[2], self._ratio) + frame_index)

    def _mix(self, start: int, condition: Array, strength: float) -> None:
        stop = start + condition.shape[2]
        before, mixed, after = np.split(self._main, [start, stop], axis=2)
        self._main = np.concatenate([before, lerp(mixed, condition, strength), after], axis=2)
        self._main_strengths[start:stop] = strength

    @property
    def latents(self) -> Array:
        return np.concatenate([*self._extra, self._main], axis=2)

    @property
    def strengths(self) -> Array:
        return np.concatenate([*self._extra_strengths, self._main_strengths])

    @property
    def first_frames(self) -> npt.NDArray[np.int64]:
        return np.concatenate([*self._extra_first_frames, first_frames(self._main.shape[2], self._ratio)])

    @property
    def extra_frames(self) -> int:
        return sum(len(each) for each in self._extra_strengths)


def lerp(start: Array, end: Array, weight: float) -> Array:
    """Between two arrays of shapes that broadcast, float32: start + weight (end - start), bit for bit torch's.

    torch fuses the multiplication and the addition, from whichever end is nearer; in float64 the product of two
    float32 numbers is exact, so that the sum is rounded as a fused one.

    Source: torch.lerp (ATen/native/Lerp.h).
    """
    fraction = np.float32(weight)
    distance = np.subtract(end, start, dtype=np.float32).astype(np.float64)
    if abs(fraction) < 0.5:
        return (distance * fraction + start).astype(np.float32)
    return (distance * (fraction - ONE) + end).astype(np.float32)


def first_frames(latent_frames: int, temporal_ratio: int) -> npt.NDArray[np.int64]:
    """(F,) the pixel frame at which each latent frame begins: the first holds one frame, so 0, 1, 9, 17, ...

    Source: diffusers `LTXConditionPipeline._scale_video_ids`.
    """
    return np.maximum(np.arange(latent_frames) * temporal_ratio + 1 - temporal_ratio, 0)


def usable_frames(given: int, *, frame_index: int, num_frames: int, temporal_ratio: int) -> int:
    """How many of a condition's frames are used: those that fit behind `frame_index`, floored to the grid (8k + 1).

    Source: diffusers `LTXConditionPipeline.trim_conditioning_sequence`.
    """
    fitting = min(given, num_frames - frame_index)
    return (fitting - 1) // temporal_ratio * temporal_ratio + 1


def sample_posterior(moments: Array, noise: Array) -> Array:
    """(N, C + 1, F, H, W) moments, C means and one log-variance, and (N, C, F, H, W) noise → (N, C, F, H, W) latents.

    mean + exp(clip(logvar, -30, 20) / 2) noise.

    Source: diffusers `DiagonalGaussianDistribution.sample`.
    """
    deviation = np.exp(np.float32(0.5) * np.clip(moments[:, -1:], -30, 20))
    out = np.multiply(noise, deviation, dtype=np.float32)
    out += moments[:, :-1]
    return out


def mix_noise(latents: Array, noise: Array, sigma: np.float32) -> Array:
    """Bring latents to the noise of a sigma: sigma noise + (1 - sigma) latents, float32.

    Source: diffusers `LTXConditionPipeline.prepare_latents`.
    """
    out = np.multiply(noise, sigma, dtype=np.float32)
    out += (ONE - sigma) * latents
    return out


def last_steps(schedule: Schedule, strength: float) -> Schedule:
    """The last int(N · strength) of N steps: where a run begins that denoises given latents.

    Source: diffusers `LTXConditionPipeline.get_timesteps`.
    """
    steps = len(schedule.timesteps)
    start = steps - min(int(steps * strength), steps)
    return dataclasses.replace(schedule, timesteps=schedule.timesteps[start:], sigmas=schedule.sigmas[start:])
