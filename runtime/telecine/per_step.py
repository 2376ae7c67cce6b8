"""Settings that a request gives once for all steps, or as a list: one a step, or one a range of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError

# A sigma that was meant to stand on the end of a range may lie below it by its rounding.
TOLERANCE = 1e-6


def listed(value: object) -> list[Any] | None:
    """The items of a list, tuple or array; None for anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def sigma_ranges(sigmas: npt.NDArray[np.float32], lower_ends: Sequence[float]) -> list[int]:
    """(N,) sigmas → the range of each: the first whose end is not above it, or else the last.

    `lower_ends` descend. With ends 1.0, 0.9, 0.5 a sigma of 1 is in range 0, 0.95 in range 1, 0.7 and 0.2 in range 2.

    Source: Lightricks/LTX-Video `LTXVideoPipeline.__call__`, `guidance_timesteps`.
    """
    reached = sigmas.astype(np.float64)[:, np.newaxis] >= np.subtract(lower_ends, TOLERANCE)
    reached[:, -1] = True
    ranges: list[int] = reached.argmax(axis=1).tolist()
    return ranges


def per_step(name: str, value: object, sigmas: npt.NDArray[np.float32], lower_ends: Sequence[float] = ()) -> list[Any]:
    """N items for (N,) sigmas: of a list with one for each step, or for each range where ranges are given; or N times
    the same single value.

    Raises:
        RequestError: a list of another length.
    """
    values = listed(value)
    if values is None:
        return [value] * len(sigmas)
    expected, each = (len(lower_ends), "sigma of guidance_sigmas") if lower_ends else (len(sigmas), "step of this run")
    if len(values) != expected:
        raise RequestError(
            f"{name} has {len(values)} values",
            expected=f"{expected}: one for each {each}",
            fix=f"Give {expected}, or a single one for all steps.",
        )
    return [values[index] for index in sigma_ranges(sigmas, lower_ends)] if lower_ends else values
