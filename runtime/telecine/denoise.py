"""The denoising loop: from noise to latents, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from telecine.errors import Cancelled, RequestError
from telecine.guidance import Guidance, StepGuidance
from telecine.linear_step import LinearStep

Array = npt.NDArray[np.float32]
# (B, ...) latents, a timestep 0..1000 or (T,) of them, and the step's guidance → (passes * B, ...) predictions of the
# passes that it needs.
Network = Callable[[Array, "np.float32 | Array", StepGuidance], Array]
# (step, steps, sigma, latents) → None, new latents, or False to stop the run.
Callback = Callable[[int, int, float, Array], "Array | bool | None"]


class Sampler(Protocol):
    """The steps of a run: what each starts from and tells the network, and where its prediction leads."""

    @property
    def sigmas(self) -> Array:
        """(steps,) share of noise at the start of each step, from 1 for noise alone."""

    def prepare(self, index: int, latents: Array) -> Array:
        """The (B, ...) latents that step `index` starts from."""

    def timesteps(self, index: int) -> np.float32 | Array:
        """What the network is told at step `index`: a timestep 0..1000, or (T,) of them."""

    def step(self, index: int, prediction: Array, latents: Array) -> Array:
        """The (B, ...) latents after step `index`."""

    @property
    def anchor(self) -> Array | None:
        """The (B, ...) latents that linear steps add as they are; None for the clean ones of the step before."""

    def linear_preparation(self, index: int) -> LinearStep | None:
        """`prepare` as a linear form; None where it changes nothing."""

    def linear_step(self, index: int) -> LinearStep:
        """`step` as a linear form."""


class Steps(Protocol):
    """A run's steps, wherever the latents lie."""

    def step(self, index: int) -> None:
        """Do step `index`; steps are done in order."""

    @property
    def latents(self) -> Array:
        """The (B, ...) latents as they are now, on the host."""

    def replace(self, latents: Array) -> None:
        """Go on from these (B, ...) latents."""


class HostSteps:
    """Steps of NumPy around a network that takes NumPy's arrays."""

    def __init__(self, network: Network, latents: Array, *, sampler: Sampler, guidance: Guidance) -> None:
        self._network, self.latents, self._sampler, self._guidance = network, latents, sampler, guidance

    def step(self, index: int) -> None:
        guided = self._guidance.at(index)
        latents = self._sampler.prepare(index, self.latents)
        prediction = guided.combine(self._network(latents, self._sampler.timesteps(index), guided))
        self.latents = self._sampler.step(index, prediction, latents)

    def replace(self, latents: Array) -> None:
        self.latents = latents


def denoise(steps: Steps, sigmas: Array, callback: Callback | None = None) -> Array:
    """(B, ...) latents after all steps, which begin at (N,) sigmas. `callback` sees every result and may replace it.

    Raises:
        Cancelled: the callback returned False.
        RequestError: the callback returned something that cannot be latents.
    """
    for index, sigma in enumerate(sigmas):
        steps.step(index)
        if callback is not None:
            latents = steps.latents
            answer = callback(index, len(sigmas), float(sigma), latents)
            if isinstance(answer, (bool, np.bool_)) and not answer:
                raise Cancelled(
                    f"the callback stopped the run after step {index + 1} of {len(sigmas)}",
                    expected="a run to its end",
                    fix="Return None from the callback to go on.",
                )
            if answer is not None and not isinstance(answer, (bool, np.bool_)):
                steps.replace(_replacement(answer, latents))
    return steps.latents


def _replacement(answer: object, latents: Array) -> Array:
    """What a callback returned, as the (B, ...) latents that the next step takes."""
    if isinstance(answer, np.ndarray) and answer.shape == latents.shape and answer.dtype.kind == "f":
        return answer.astype(np.float32, copy=False)
    got = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
    raise RequestError(
        f"the callback returned {got}",
        expected=f"None, False, or a NumPy array of floats of shape {latents.shape}",
        fix="Return latents of the shape that the callback was given.",
    )
