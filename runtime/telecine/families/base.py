"""What a family is: pipelines by diffusers' class name, each a function over the bundle's models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from telecine.backends.base import NetworkFacts, Session
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.memory_budget import Need
from telecine.prompt_cache import PromptCache
from telecine.request import Request
from telecine.second_stage import SecondStage
from telecine.shapes import Grid
from telecine.tokenizer import Tokenizer
from telecine.upscale_request import UpscaleRequest
from telecine.workload import AxisRanges, Workload

# Times a named stage of a run: `with stage("text"): ...`.
Stage = Callable[[str], AbstractContextManager[None]]


class Models(Protocol):
    """A bundle's networks, loaded when first asked for."""

    @property
    def host(self) -> Mapping[str, Any]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def prompts(self) -> PromptCache: ...

    def session(self, component: str, role: str = "main") -> Session: ...

    def helper(self, component: str) -> Session | None:
        """As `session`, of a graph that NumPy can stand for; None where the bundle or its engines are older."""

    def require(self, component: str) -> None:
        """
        Raises:
            BundleError: the bundle lacks the component.
        """

    @property
    def keeps_frames(self) -> bool: ...  # of the run, until its end

    def facts(self, component: str, role: str = "main") -> NetworkFacts:
        """What the backend tells of a component's graph that it has not loaded.

        Raises:
            BundleError, EngineError: the bundle lacks the component, or the engine that must run it.
        """

    def activation_bytes(self, component: str, rows: int) -> int:
        """Bytes of running a component's `main` graph on so many rows, such as tokens, of its linear layers.

        Raises:
            BundleError: the bundle lacks the component.
        """

    def expect(self, needs: Sequence[Need], limit: int | None) -> None:
        """A run's stages in their order, before the first: how `session` makes room for each within the limit."""

    def limits(self, component: str, role: str = "main") -> Mapping[str, int] | None:
        """The largest size of each axis of a component's graph, by symbol; None where there are no limits.

        Raises:
            EngineError: there is no engine that fits, and nothing else may run the component.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """(B, num_frames, height, width, 3) frames that are yet to be decoded.

    `pieces`: (B, n, height, width, 3) along time, in order; each is made when it is asked for, and once.
    """

    shape: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    pieces: Iterator[npt.NDArray[Any]]

    def whole(self) -> npt.NDArray[Any]:
        """All that is left of them, decoded."""
        frames = np.empty(self.shape, self.dtype)
        done = 0
        for piece in self.pieces:
            if piece.shape == self.shape:
                return piece
            frames[:, done : done + piece.shape[1]] = piece
            done += piece.shape[1]
        return frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What a pipeline makes: frames (B, num_frames, height, width, 3), or latents as diffusers returns them.

    Families with sound make `audio` (B, channels, samples) beside the frames, `audio_latents` beside latents.
    """

    frames: Frames | None = None
    latents: npt.NDArray[Any] | None = None
    audio: npt.NDArray[np.float32] | None = None
    sample_rate: int | None = None
    audio_latents: npt.NDArray[Any] | None = None
    seeds: tuple[int, ...]
    frame_rate: float | None = None  # where the request does not tell


class Run(Protocol):
    """A pipeline's host math."""

    def __call__(self, models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """One diffusers pipeline class: its host math, the defaults of its `__call__`, and what it alone takes.

    `takes`: parameters that not every pipeline of the family has. `chosen_by`: those of them that choose this
    pipeline in a bundle of another class. `model_defaults`: defaults that the model tells, from the manifest's host
    configuration. `request`: where the family's parameters are, if it has some of its own.
    """

    run: Run
    defaults: Mapping[str, Any]
    takes: frozenset[str] = frozenset()
    chosen_by: frozenset[str] = frozenset()
    model_defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda host: {}
    request: type[Request] = Request


class Upscale(Protocol):
    """The host math of `Pipeline.upscale`."""

    def __call__(self, models: Models, request: UpscaleRequest, *, stage: Stage) -> Output: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerSpec:
    """The diffusers pipeline that upsamples latents: its host math and the defaults of its `__call__`."""

    run: Upscale
    defaults: Mapping[str, Any]


class TwoStage(Protocol):
    """A whole run of a pipeline in two stages, an upsampling between them."""

    def __call__(
        self,
        spec: PipelineSpec,
        second: SecondStage,
        models: Models,
        request: Request,
        *,
        stage: Stage,
        callback: Callback | None,
    ) -> Output: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStageSpec:
    """How a family makes a video in two stages: `defaults` of `SecondStage`'s settings, and `refinement`, the
    parameters of `generate` that the second denoising may have of its own.
    """

    run: TwoStage
    defaults: Mapping[str, Any]
    refinement: Sequence[str]


class AxisRangesOf(Protocol):
    """Ranges of a component's axes by symbol for a workload, once for each size at which a run uses it."""

    def __call__(self, component: str, workload: Workload, host: Mapping[str, Any]) -> list[AxisRanges]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How checkpoints of a family name their weights; a bundle has diffusers' names.

    `lora`: the component that LoRA files act on; `rename`: diffusers' name of one of its layers, whatever the layout.
    `tensors`: for each component, {diffusers' name: the file's} of a file's names, or nothing where the file does not
    hold it. `tied`: another name of the same tensor. `recorded`: for each component, {tensor: key} of those that the
    manifest's host configuration has instead of a graph.
    """

    lora: str
    rename: Callable[[str], str]
    tensors: Mapping[str, Callable[[Collection[str]], dict[str, str]]]
    tied: Mapping[str, str]
    recorded: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that share graphs and host math.

    `grid` is of the manifest's host configuration. `vae_tile` and `keyframes` are what engines are built for where
    nothing is asked: the largest WIDTHxHEIGHTxFRAMES that the VAE takes at once (None: the whole video), and the latent
    frames that conditions may add (None: the family has no such conditions). `plan_needs_prompt`: why hosts of its
    plans cannot bring the prompt (None: they can). `refuses`: parameters of `generate` that none of its pipelines has,
    each with what to do instead. `bench`: parameters with which a benchmark's request is guided by its prompts alone.
    """

    name: str
    naming: Naming
    pipelines: Mapping[str, PipelineSpec]
    grid: Callable[[Mapping[str, Any]], Grid]
    axis_ranges: AxisRangesOf
    vae_tile: str | None = None
    keyframes: int | None = None
    upscaler: UpscalerSpec | None = None
    two_stage: TwoStageSpec | None = None
    plan_needs_prompt: str | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)

    def choose(self, recorded: str, given: Collection[str], *, asked: str | None = None) -> str:
        """The pipeline for a request that gives these parameters: the one asked for by name, else the bundle's own.

        Where the bundle's own does not take what chooses a pipeline (an image, conditions, a second stage), the first
        that takes all of it runs.

        Raises:
            RequestError: an unknown pipeline, or a parameter that it does not take.
        """
        name = asked or recorded
        if name not in self.pipelines:
            by = "asked for" if asked else "what the bundle was exported from"
            raise RequestError(
                f"pipeline {name} ({by})",
                expected=f"one of {', '.join(self.pipelines)}",
                fix=f"Pass pipeline={next(iter(self.pipelines))!r}; its host math differs from {name}'s.",
            )
        for parameter in sorted(self.refuses.keys() & set(given)):
            raise RequestError(
                f"{parameter} for a {self.name} model", expected="no such parameter", fix=self.refuses[parameter]
            )
        inputs = {each for spec in self.pipelines.values() for each in spec.chosen_by} & set(given)
        if not asked and not inputs <= self.pipelines[name].takes:
            # Where none takes all of them, the first that takes one says which it does not.
            suited = [other for other, spec in self.pipelines.items() if inputs <= spec.takes]
            name = suited[0] if suited else name
        for parameter in sorted(set(given) - self.pipelines[name].takes):
            takers = [other for other, spec in self.pipelines.items() if parameter in spec.takes]
            if takers:
                raise RequestError(
                    f"{parameter} for {name}",
                    expected=f"a pipeline that takes it: {' or '.join(takers)}",
                    fix=f"Leave {parameter} out, or pass pipeline={takers[0]!r}.",
                )
        return name

    def settings(self, name: str, preset: Mapping[str, Any]) -> dict[str, Any]:
        """What of a preset this pipeline takes: a preset is for all of the bundle's pipelines."""
        others = {parameter for spec in self.pipelines.values() for parameter in spec.takes}
        return {key: value for key, value in preset.items() if key not in others - self.pipelines[name].takes}
