"""The schedule of diffusers' LTXConditionPipeline: a few small steps near the noise, then growing ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

THRESHOLD_NOISE = 0.025  # how far the linear half goes


def linear_quadratic_sigmas(num_inference_steps: int) -> npt.NDArray[np.float32]:
    """(N,) float32 sigmas from 1 downwards; the end, 0, is left to the scheduler.

    The first N // 2 steps are equal and cross THRESHOLD_NOISE together; the rest grow quadratically.

    Source: diffusers `pipeline_ltx_condition.linear_quadratic_schedule`, in its order of operations.
    """
    if num_inference_steps < 2:
        return np.ones(1, np.float32)
    linear_steps = num_inference_steps // 2
    quadratic_steps = num_inference_steps - linear_steps
    difference = linear_steps - THRESHOLD_NOISE * num_inference_steps
    quadratic = difference / (linear_steps * quadratic_steps**2)
    linear = THRESHOLD_NOISE / linear_steps - 2 * difference / quadratic_steps**2
    constant = quadratic * linear_steps**2
    crossed = [i * THRESHOLD_NOISE / linear_steps for i in range(linear_steps)]
    crossed += [quadratic * i**2 + linear * i + constant for i in range(linear_steps, num_inference_steps)]
    return np.array([1.0 - each for each in crossed], np.float32)
