"""diffusers' CogVideoXDDIMScheduler: the step, which draws no noise. `eta` does nothing in diffusers, and is absent."""

from __future__ import annotations

import numpy as np

from telecine.schedulers.cogvideox import Array, CogVideoXSchedule, predict_original


def coefficients(schedule: CogVideoXSchedule, index: int) -> tuple[np.float64, np.float64]:
    """What step `index` weighs the sample and the clean one by."""
    level, following = schedule.level(index), schedule.next_level(index)
    kept = np.sqrt((1 - following) / (1 - level))
    return kept, np.sqrt(following) - np.sqrt(level) * kept


def step(schedule: CogVideoXSchedule, index: int, prediction: Array, sample: Array) -> Array:
    """Move a sample of any shape, float32, by a prediction of that shape, along step `index`.

    a x + (√ᾱ' - √ᾱ a) x0 with a = √((1 - ᾱ') / (1 - ᾱ)).

    Source: Song et al. 2021 (DDIM); diffusers `CogVideoXDDIMScheduler.step`.
    """
    kept, added = coefficients(schedule, index)
    out = np.multiply(sample, np.float32(kept), dtype=np.float32)
    out += np.float32(added) * predict_original(schedule, index, prediction, sample)
    return out
