"""What every kind of request checks of its parameters, before any work is done."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError

OUTPUT_TYPES = ("np", "uint8", "latent")
MAX_FLOAT = float(np.finfo(np.float32).max)

Array = npt.NDArray[Any]


def check(right: bool, got: str, expected: str, fix: str) -> None:
    """
    Raises:
        RequestError: it is not right.
    """
    if not right:
        raise RequestError(got, expected=expected, fix=fix)


def is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    # False for NaN, and for what float32 would make infinite; unlike math.isfinite it takes an integer of any length.
    return (is_whole(value) or isinstance(value, (float, np.floating))) and abs(value) <= MAX_FLOAT  # type: ignore


def check_range(name: str, value: object, low: float, high: float, fix: str) -> None:
    """
    Raises:
        RequestError: no number from `low` to `high`.
    """
    right = is_number(value) and low <= value <= high  # type: ignore[operator]
    check(right, f"{name} is {value!r}", f"a number from {low:g} to {high:g}", fix)


def check_output_type(value: object) -> None:
    """
    Raises:
        RequestError: none of `OUTPUT_TYPES`.
    """
    check(
        value in OUTPUT_TYPES,
        f"output_type is {value!r}",
        f"one of {', '.join(OUTPUT_TYPES)}",
        "Use 'np' for floats in [0, 1], 'uint8' for bytes, 'latent' to skip the decoder.",
    )


STEPS = ("num_inference_steps", "timesteps", "sigmas")


def first_given(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """What each parameter is: the first layer that gives it (not None) wins.

    A layer that says which steps there are sets the timesteps and sigmas of the later ones aside, which would overrule
    it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        new = {name: value for name, value in layer.items() if value is not None and name not in merged}
        if not merged.keys().isdisjoint(STEPS):
            new = {name: value for name, value in new.items() if name not in STEPS[1:]}
        merged |= new
    return merged


def floats(name: str, value: object) -> Array:
    """An array that a caller passed, as float32 of any shape.

    Raises:
        RequestError: not numbers, or no array.
    """
    try:
        array = np.asarray(value)
        check(array.dtype.kind not in "OSUMmc", f"{name} holds {array.dtype}", "numbers", "Pass an array of floats.")
        with np.errstate(over="ignore"):  # to infinity, which is looked for where it matters
            return array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:  # ragged lists; tensors on a device or of a dtype that NumPy lacks
        raise RequestError(
            f"{name} is no array ({error})", expected="a NumPy array of floats", fix="Convert it to float32 first."
        ) from error


def seeds_of(seed: int | Sequence[int] | None, videos: int) -> tuple[int, ...]:
    """One seed for all videos, or one a video; a fresh random one where none is given.

    Raises:
        RequestError: a list of another length.
    """
    if seed is None:
        # All the bits that count (`noise.Generator`); more would not survive JSON readers that have doubles only.
        return (secrets.randbits(32),)
    if isinstance(seed, str) or not isinstance(seed, Sequence):
        return (seed,)  # Generator refuses what is no integer
    check(
        len(seed) in (1, videos),
        f"{len(seed)} seeds",
        f"one, or {videos}: one a video",
        "Give a single seed, or a list as long as the batch.",
    )
    return tuple(seed)


def numbers_of(name: str, value: float | Sequence[float], counts: set[int]) -> npt.NDArray[np.float32]:
    """(N,) float32 of a parameter that is given once or as a list, N being one of `counts`.

    Raises:
        RequestError: not finite numbers, or another count.
    """
    values = np.atleast_1d(floats(name, value))
    check(
        values.ndim == 1 and len(values) in counts and bool(np.isfinite(values).all()),
        f"{name} is {value!r}",
        f"a finite number, or a list of {' or '.join(map(str, sorted(counts)))}",
        "Give one for all, one a prompt, or one a video.",
    )
    return values
