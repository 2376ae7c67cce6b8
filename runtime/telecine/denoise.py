"""The denoising loop: from noise to latents, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from telecine.errors import Cancelled, RequestError
from telecine.guidance import Guidance, HasPasses

Array = npt.NDArray[np.float32]
# (B, ...) latents: an array, or a NamedTuple of arrays that are denoised together.
Latents = TypeVar("Latents")
Told = TypeVar("Told")  # what the network is told of a step: a timestep 0..1000, (T,) of them, or more
Told_co = TypeVar("Told_co", covariant=True)
# (step, steps, sigma, latents) → None, new latents, or False to stop the run.
Callback = Callable[[int, int, float, Any], Any]


class Guided(HasPasses, Protocol):
    """The guidance of one step."""

    def combine(self, predictions: Any, /) -> Any:
        """(passes * B, ...) predictions, in the passes' order → (B, ...)."""


Step = TypeVar("Step", bound=Guided)


class Sampler(Protocol[Latents, Told_co]):
    """The steps of a run: what each starts from and tells the network, and where its prediction leads."""

    @property
    def sigmas(self) -> Array:
        """(steps,) share of noise at the start of each step, from 1 for noise alone."""

    def prepare(self, index: int, latents: Latents, /) -> Latents:
        """The (B, ...) latents that step `index` starts from."""

    def timesteps(self, index: int, /) -> Told_co:
        """What the network is told at step `index`."""

    def step(self, index: int, prediction: Latents, latents: Latents, /) -> Latents:
        """The (B, ...) latents after step `index`."""


def denoise(
    network: Callable[[Latents, Told, Step], Latents],
    latents: Latents,
    *,
    sampler: Sampler[Latents, Told],
    guidance: Guidance[Step],
    callback: Callback | None = None,
) -> Latents:
    """(B, ...) noise → (B, ...) latents, along the sampler's steps. `callback` sees every result and may replace it.

    `network` gives the (passes * B, ...) predictions of the passes that the step needs.

    Raises:
        Cancelled: the callback returned False.
        RequestError: the callback returned something that cannot be latents.
    """
    sigmas = sampler.sigmas
    for index, sigma in enumerate(sigmas):
        guided = guidance.at(index)
        latents = sampler.prepare(index, latents)
        prediction = guided.combine(network(latents, sampler.timesteps(index), guided))
        latents = sampler.step(index, prediction, latents)
        if callback is not None:
            answer = callback(index, len(sigmas), float(sigma), latents)
            if isinstance(answer, (bool, np.bool_)) and not answer:
                raise Cancelled(
                    f"the callback stopped the run after step {index + 1} of {len(sigmas)}",
                    expected="a run to its end",
                    fix="Return None from the callback to go on.",
                )
            if answer is not None and not isinstance(answer, (bool, np.bool_)):
                latents = _replacement(answer, latents)
    return latents


def _replacement(answer: object, latents: Latents) -> Latents:
    """What a callback returned, as the (B, ...) latents that the next step takes."""
    new: Any
    if isinstance(latents, tuple):
        if isinstance(answer, (tuple, list)) and len(answer) == len(latents):
            new = type(latents)(*map(_replacement, answer, latents))
            return new
        parts = [each.shape for each in latents]
        raise _wrong_replacement(answer, f"as many arrays as it was given, of shapes {', '.join(map(str, parts))}")
    assert isinstance(latents, np.ndarray)
    if isinstance(answer, np.ndarray) and answer.shape == latents.shape and answer.dtype.kind == "f":
        new = answer.astype(np.float32, copy=False)
        return new
    raise _wrong_replacement(answer, f"a NumPy array of floats of shape {latents.shape}")


def _wrong_replacement(answer: object, expected: str) -> RequestError:
    got = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
    return RequestError(
        f"the callback returned {got}",
        expected=f"None, False, or {expected}",
        fix="Return latents of the shape that the callback was given.",
    )
