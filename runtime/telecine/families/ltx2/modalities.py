"""Video and sound together: their latents as a pair, and what a network predicts of both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class AudioVideo(NamedTuple):
    """(B, T, C) tokens of the video and (B, S, C') tokens of its sound, float32."""

    video: Array
    audio: Array


class Told(NamedTuple):
    """What the transformer is told at a step, and the shares of noise that its velocities are of.

    `timesteps`: (T,) of the video's tokens, or (1,) for all of them, 0..1000; `timestep` and `audio_timestep` are those
    of tokens that nothing holds, the transformer's `sigma` and `audio_sigma`. `sigma` and `audio_sigma` run on 0..1.
    """

    timesteps: Array
    timestep: np.float32
    audio_timestep: np.float32
    sigma: np.float32
    audio_sigma: np.float32


def clean(velocities: AudioVideo, latents: AudioVideo, told: Told) -> AudioVideo:
    """(passes * B, ...) velocities → the clean latents that they lead to from (B, ...) latents: x - v sigma.

    Source: diffusers `LTX2Pipeline.convert_velocity_to_x0`.
    """
    return AudioVideo(
        _clean(velocities.video, latents.video, told.sigma),
        _clean(velocities.audio, latents.audio, told.audio_sigma),
    )


def velocity(predicted: Array, latents: Array, sigma: np.float32) -> Array:
    """(B, ...) clean latents as predicted → the velocity that leads there: (x - x0) / sigma.

    Source: diffusers `LTX2Pipeline.convert_x0_to_velocity`.
    """
    out = np.subtract(latents, predicted, dtype=np.float32)
    out /= sigma
    return out


def _clean(velocities: Array, latents: Array, sigma: np.float32) -> Array:
    out = np.multiply(velocities, sigma, dtype=np.float32)
    by_pass = out.reshape(-1, *latents.shape)
    np.subtract(latents, by_pass, out=by_pass)
    return out
