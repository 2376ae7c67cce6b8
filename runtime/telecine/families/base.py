"""What a family is: pipelines by diffusers' class name, each a function over the bundle's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from telecine.backends.base import Session
from telecine.denoise import Callback
from telecine.request import Request
from telecine.second_stage import SecondStage
from telecine.tokenizer import Tokenizer
from telecine.upscale_request import UpscaleRequest

# Times a named stage of a run: `with stage("text"): ...`.
Stage = Callable[[str], AbstractContextManager[None]]


class Models(Protocol):
    """A bundle's networks, loaded when first asked for."""

    @property
    def host(self) -> Mapping[str, Any]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def session(self, component: str, role: str = "main") -> Session: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What a pipeline makes: frames (B, num_frames, height, width, 3), or latents as diffusers returns them."""

    frames: npt.NDArray[Any] | None = None
    latents: npt.NDArray[Any] | None = None
    seeds: tuple[int, ...]
    frame_rate: float | None = None  # where the request does not tell


class Run(Protocol):
    """A pipeline's host math."""

    def __call__(self, models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """One diffusers pipeline class: its host math and the defaults of its `__call__`."""

    run: Run
    defaults: Mapping[str, Any]


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
class Family:
    """Models that share graphs and host math."""

    name: str
    pipelines: Mapping[str, PipelineSpec]
    upscaler: UpscalerSpec
    two_stage: TwoStage
