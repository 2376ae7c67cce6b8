"""What the host computes in a denoising step: guidance and Euler's step, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.bench.competitor import Clock, now
from telecine.bench.spread import Spread
from telecine.guidance import StepGuidance
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, make_schedule, pipeline_sigmas, step

# (B, T, C) of LTX-Video at 768x512x121.
SHAPE = (1, 16 * 16 * 24, 128)
REPEATS = 200
GUIDANCE = {"guidance": StepGuidance(scale=3.0), "guidance_and_rescale": StepGuidance(scale=3.0, rescale=0.7)}


def host_step(repeats: int = REPEATS, clock: Clock = now) -> dict[str, Any]:
    """Seconds of a step's array work at 6,144 tokens x 128 channels, without and with rescaling."""
    config = FlowMatchEulerConfig()
    schedule = make_schedule(config, sigmas=pipeline_sigmas(8))
    random = np.random.default_rng(0)
    latents = random.standard_normal(SHAPE, dtype=np.float32)
    predicted = random.standard_normal((2 * SHAPE[0], *SHAPE[1:]), dtype=np.float32)

    def once(guided: StepGuidance, velocities: npt.NDArray[np.float32]) -> None:
        step(config, schedule, 0, guided.combine(velocities), latents)

    def timed(guided: StepGuidance) -> Spread:
        return _timed(lambda velocities: once(guided, velocities), predicted, repeats, clock)

    return {"shape": SHAPE, **{name: asdict(timed(guided)) for name, guided in GUIDANCE.items()}}


def _timed(
    once: Callable[[npt.NDArray[np.float32]], None], predicted: npt.NDArray[np.float32], repeats: int, clock: Clock
) -> Spread:
    """Seconds of `once`, which overwrites what it is given."""
    velocities = predicted.copy()
    once(velocities)
    seconds = []
    for _ in range(repeats):
        velocities[:] = predicted
        start = clock()[0]
        once(velocities)
        seconds.append(clock()[0] - start)
    return Spread.of(seconds)
