"""The denoising loop: from noise to latents, for every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from telecine.conditioning import Conditioning
from telecine.errors import Cancelled, RequestError
from telecine.guidance import Guidance, StepGuidance
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, Schedule

Array = npt.NDArray[np.float32]
# (B, T, C) latents, a timestep 0..1000 or (T,) of them, and the step's guidance → (passes * B, T, C) velocities of the
# passes that it needs.
Network = Callable[[Array, "np.float32 | Array", StepGuidance], Array]
# (step, steps, sigma, latents) → None, new latents, or False to stop the run.
Callback = Callable[[int, int, float, Array], "Array | bool | None"]


def denoise(
    network: Network,
    latents: Array,
    *,
    config: FlowMatchEulerConfig,
    schedule: Schedule,
    guidance: Guidance,
    conditioning: Conditioning | None = None,
    draw_noise: Callable[[], Array] | None = None,
    callback: Callback | None = None,
) -> Array:
    """(B, T, C) noise → (B, T, C) latents, along the schedule.

    `conditioning` keeps tokens; none keeps nothing. `draw_noise` gives the (B, T, C) noise of what a step moves, where
    the scheduler samples stochastically. `callback` sees every step's result and may replace it.

    Raises:
        Cancelled: the callback returned False.
        RequestError: the callback returned something that cannot be latents.
    """
    conditioning = conditioning or Conditioning()
    steps = len(schedule.timesteps)
    for index, timestep in enumerate(schedule.timesteps):
        guided = guidance.at(index)
        latents = conditioning.prepare(latents, timestep)
        velocity = guided.combine(network(latents, conditioning.token_timesteps(timestep), guided))
        noise = draw_noise() if draw_noise else None
        latents = conditioning.step(config, schedule, index, velocity, latents, noise)
        if callback is not None:
            answer = callback(index, steps, float(schedule.sigmas[index]), latents)
            if isinstance(answer, (bool, np.bool_)) and not answer:
                raise Cancelled(
                    f"the callback stopped the run after step {index + 1} of {steps}",
                    expected="a run to its end",
                    fix="Return None from the callback to go on.",
                )
            if answer is not None and not isinstance(answer, (bool, np.bool_)):
                latents = _replacement(answer, latents)
    return latents


def _replacement(answer: object, latents: Array) -> Array:
    """What a callback returned, as the (B, T, C) latents that the next step takes."""
    if isinstance(answer, np.ndarray) and answer.shape == latents.shape and answer.dtype.kind == "f":
        return answer.astype(np.float32, copy=False)
    got = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
    raise RequestError(
        f"the callback returned {got}",
        expected=f"None, False, or a NumPy array of floats of shape {latents.shape}",
        fix="Return latents of the shape that the callback was given.",
    )
