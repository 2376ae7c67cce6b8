"""FlowMatchEuler's step where every token has a timestep of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, Schedule

Array = npt.NDArray[np.float32]
SAME = np.float32(1e-6)  # sigmas this close are one


def step_tokens(
    config: FlowMatchEulerConfig,
    schedule: Schedule,
    timesteps: Array,
    velocity: Array,
    sample: Array,
    *,
    noise: Array | None = None,
) -> Array:
    """Move (B, T, C) samples along (B, T, C) velocities, each token from its own timestep, (T,) or (1,) for all.

    A token goes from sigma s to s', the next lower sigma of the schedule: x + (s' - s) v. With `stochastic_sampling`:
    x0 = x - s v, then (1 - s') x0 + s' noise.

    Raises:
        RequestError: the configuration samples stochastically and there is no noise.

    Source: diffusers `FlowMatchEulerDiscreteScheduler.step` with `per_token_timesteps`. diffusers hands it the negated
    velocity, which its stochastic branch does not undo; here both branches take the velocity as it is.
    """
    current, following = (each[:, np.newaxis] for each in token_sigmas(config, schedule, timesteps))
    if not config.stochastic_sampling:
        out = np.multiply(velocity, following - current, dtype=np.float32)
        return np.add(sample, out, out=out)
    if noise is None:
        raise RequestError(
            "a stochastic step got no noise",
            expected="standard normal noise of the sample's shape",
            fix="Draw it from the request's second noise stream.",
        )
    out = np.multiply(velocity, current, dtype=np.float32)
    np.subtract(sample, out, out=out)
    out *= 1 - following
    out += noise * following
    return out


def token_sigmas(config: FlowMatchEulerConfig, schedule: Schedule, timesteps: Array) -> tuple[Array, Array]:
    """(T,) sigmas that tokens go from and to, by their (T,) timesteps."""
    current = timesteps / np.float32(config.num_train_timesteps)
    sigmas = schedule.sigmas[:, np.newaxis]
    return current, np.where(sigmas < current - SAME, sigmas, np.float32(0)).max(axis=0)
