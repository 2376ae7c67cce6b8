"""diffusers' CogVideoXDPMScheduler: DPM-Solver++ (2M) with noise added at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from telecine.schedulers.cogvideox import Array, CogVideoXSchedule, predict_original


class Coefficients(NamedTuple):
    """Of a step: `sample`, `original` and `noise` weigh the new sample; `now` and `before` the clean ones of this step
    and of the one before it. float32, since that is what they become when they meet arrays."""

    sample: np.float32
    original: np.float32
    noise: np.float32
    now: np.float32
    before: np.float32


def coefficients(schedule: CogVideoXSchedule, index: int) -> Coefficients:
    """Of step `index`. At both ends of a zero-SNR schedule logarithms are infinite, and the coefficients are not.

    Source: diffusers `CogVideoXDPMScheduler.get_variables`, `get_mult`.
    """
    level, following = schedule.level(index), schedule.next_level(index)
    with np.errstate(divide="ignore", invalid="ignore"):
        here, there = _log_snr(level), _log_snr(following)
        span = there - here
        sample = np.sqrt((1 - following) / (1 - level)) * np.exp(-span)
        original = np.expm1(-2 * span) * np.sqrt(following)
        noise = np.sqrt(1 - following) * np.sqrt(1 - np.exp(-2 * span))
        before = np.float64(0)
        if index and not schedule.ends(index):  # the last step has no use for it
            ratio = (here - _log_snr(schedule.level(index - 1))) / span
            before = 1 / (2 * ratio)
    return Coefficients(*map(np.float32, (sample, original, noise, 1 + before, before)))


def step(
    schedule: CogVideoXSchedule,
    index: int,
    prediction: Array,
    sample: Array,
    *,
    before: Array | None,
    draw_noise: Callable[[], Array],
) -> tuple[Array, Array]:
    """Move a sample of any shape, float32, along step `index`; returns it and the clean sample that was predicted.

    `before` is the step before's clean sample; none at the first step of a run. `draw_noise` draws standard normal
    noise of the sample's shape. Where the clean samples of two steps are used, diffusers draws twice and drops the
    first draw: so does this.

    Source: Lu et al. 2022 (DPM-Solver++); diffusers `CogVideoXDPMScheduler.step`.
    """
    weights = coefficients(schedule, index)
    original = predict_original(schedule, index, prediction, sample)
    noise, clean = draw_noise(), original
    if before is not None and not schedule.ends(index):
        noise = draw_noise()
        clean = weights.now * original - weights.before * before
    out = np.multiply(sample, weights.sample, dtype=np.float32)
    out -= weights.original * clean
    out += weights.noise * noise
    return out, original


def _log_snr(level: np.float64) -> np.float64:
    """Half the logarithm of the signal-to-noise ratio."""
    return np.float64(np.log(np.sqrt(level / (1 - level))))
