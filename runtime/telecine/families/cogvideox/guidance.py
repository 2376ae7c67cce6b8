"""The guidance of each step: as asked, or growing along the steps."""

from __future__ import annotations

import math

from telecine.errors import RequestError
from telecine.guidance import Guidance, Pass, StepGuidance
from telecine.per_step import listed, per_step
from telecine.request import Request
from telecine.schedulers.cogvideox import CogVideoXSchedule


class BothPasses(StepGuidance):
    """Guidance that needs both prompts at any scale: a dynamic one may fall below 1."""

    @property
    def passes(self) -> tuple[Pass, ...]:
        return "negative", "positive"


def request_guidance(request: Request, schedule: CogVideoXSchedule) -> Guidance:
    """The guidance of a run along a schedule; a scale above 1 turns it on, for dynamic guidance too.

    Raises:
        RequestError: a list of another length than the steps, or a list with dynamic guidance.
    """
    scales = per_step("guidance_scale", request.guidance_scale, schedule.sigmas)
    if not request.use_dynamic_cfg:
        return Guidance(tuple(StepGuidance(scale=float(scale)) for scale in scales))
    if listed(request.guidance_scale) is not None:
        raise RequestError(
            "a list of guidance scales with use_dynamic_cfg",
            expected="one scale, which dynamic guidance grows to",
            fix="Leave use_dynamic_cfg out.",
        )
    if not scales[0] > 1:
        return Guidance((StepGuidance(),) * len(scales))
    steps = len(scales)
    return Guidance(
        tuple(
            BothPasses(scale=dynamic_scale(float(scale), int(timestep), steps))
            for scale, timestep in zip(scales, schedule.timesteps, strict=True)
        )
    )


def dynamic_scale(scale: float, timestep: int, steps: int) -> float:
    """1 + scale (1 - cos(π ((N - t) / N)⁵)) / 2 of N steps, at a timestep t of training.

    t runs to 999 and N is the number of steps: the fifth power is of a large negative number, and the scale jumps
    between 1 and 1 + scale until t is below N. That is what diffusers computes, and what its results are known by.

    Source: diffusers `CogVideoXPipeline.__call__`.
    """
    return 1 + scale * ((1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2)
