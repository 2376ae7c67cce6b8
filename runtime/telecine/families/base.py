"""What a family is: pipelines by diffusers' class name, each a function over the bundle's models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.denoise import Callback
from telecine.request import Request
from telecine.tokenizer import Tokenizer

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
    """What a pipeline makes: frames (B, num_frames, height, width, 3), or latents as diffusers returns them."""

    frames: Frames | None = None
    latents: npt.NDArray[Any] | None = None
    seeds: tuple[int, ...]


class Run(Protocol):
    """A pipeline's host math."""

    def __call__(self, models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """One diffusers pipeline class: its host math and the defaults of its `__call__`."""

    run: Run
    defaults: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that share graphs and host math."""

    name: str
    pipelines: Mapping[str, PipelineSpec]
