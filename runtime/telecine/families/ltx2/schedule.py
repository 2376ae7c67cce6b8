"""The steps of a video and of its sound: the schedule of a request, and those of distilled models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.schedulers.flow_match_euler import (
    FlowMatchEulerConfig,
    Schedule,
    calculate_shift,
    make_schedule,
    pipeline_sigmas,
)

# `sigmas` of distilled models, and of the second stage at twice the size, whose `noise_scale` is the first of them.
# Source: diffusers `DISTILLED_SIGMA_VALUES` and `STAGE_2_DISTILLED_SIGMA_VALUES`.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
SECOND_STAGE_SIGMAS = (0.909375, 0.725, 0.421875)


def static(config: FlowMatchEulerConfig) -> FlowMatchEulerConfig:
    """The same scheduler, but that sigmas stay as they are: what diffusers' documentation refines latents with."""
    return replace(config, use_dynamic_shifting=False, shift_terminal=None)


def schedule_of(
    config: FlowMatchEulerConfig,
    tokens: int,
    *,
    num_inference_steps: int,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> Schedule:
    """The schedule of a modality, for so many tokens of the video, its keyframes' too.

    Given sigmas are shifted as those of a number of steps are; given timesteps replace them (diffusers passes both, and
    fails there).

    Raises:
        RequestError: both are given, or a step would begin without noise.

    Source: diffusers `LTX2Pipeline.__call__`, step 5.
    """
    if sigmas is not None and timesteps is not None:
        raise RequestError("sigmas and timesteps", expected="one of the two", fix="Timesteps are 1000 times sigmas.")
    mu = calculate_shift(tokens, config)
    if timesteps is not None:
        schedule = make_schedule(config, timesteps=timesteps, mu=mu)
    else:
        given: npt.ArrayLike = pipeline_sigmas(num_inference_steps) if sigmas is None else np.asarray(sigmas)
        schedule = make_schedule(config, sigmas=given, mu=mu)
    if not schedule.sigmas[:-1].min() > 0:
        raise RequestError(
            f"the last step begins at sigma {schedule.sigmas[-2]:g}",
            expected="more than 0: its velocity is divided by it",
            fix="Drop the last entry: every schedule ends at 0 by itself.",
        )
    return schedule
