"""The denoising loop: from noise to latents, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from telecine.errors import Cancelled, RequestError
from telecine.guidance import Guidance, HasPasses
from telecine.linear_step import LinearStep

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


class LinearSampler(Sampler[Array, "np.float32 | Array"], Protocol):
    """A sampler whose steps are linear forms of one array too, which a graph can do."""

    @property
    def anchor(self) -> Array | None:
        """The (B, ...) latents that linear steps add as they are; None for the clean ones of the step before."""

    def linear_preparation(self, index: int, /) -> LinearStep | None:
        """`prepare` as a linear form; None where it changes nothing."""

    def linear_step(self, index: int, /) -> LinearStep:
        """`step` as a linear form."""


class Steps(Protocol[Latents]):
    """A run's steps, wherever the latents lie."""

    def step(self, index: int, /) -> None:
        """Do step `index`; steps are done in order."""

    @property
    def latents(self) -> Latents:
        """The (B, ...) latents as they are now, on the host."""

    def replace(self, latents: Latents, /) -> None:
        """Go on from these (B, ...) latents."""


class HostSteps(Generic[Latents]):
    """Steps of NumPy around a network of NumPy's arrays.

    `network`: (B, ...) latents, what it is told and the step's guidance → (passes * B, ...) predictions of the passes
    that the step needs.
    """

    def __init__(
        self,
        network: Callable[[Latents, Told, Step], Latents],
        latents: Latents,
        *,
        sampler: Sampler[Latents, Told],
        guidance: Guidance[Step],
    ) -> None:
        self.latents = latents
        self._network, self._sampler, self._guidance = network, sampler, guidance

    def step(self, index: int) -> None:
        guided = self._guidance.at(index)
        latents = self._sampler.prepare(index, self.latents)
        prediction = guided.combine(self._network(latents, self._sampler.timesteps(index), guided))
        self.latents = self._sampler.step(index, prediction, latents)

    def replace(self, latents: Latents) -> None:
        self.latents = latents


def denoise(steps: Steps[Latents], sigmas: Array, callback: Callback | None = None) -> Latents:
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
