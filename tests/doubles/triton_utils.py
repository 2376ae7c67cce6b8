"""A double of `triton_python_backend_utils`, which exists inside Triton's Python backend alone: what telecine uses."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
LIMIT_S = 60.0


@dataclass(frozen=True)
class Tensor:
    _name: str
    _array: np.ndarray

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


@dataclass(frozen=True)
class TritonError:
    INTERNAL = 1
    INVALID_ARG = 3
    CANCELLED = 7
    text: str
    code: int


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] = (), error: TritonError | None = None) -> None:  # type: ignore
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


@dataclass
class ResponseSender:
    """`cancel_after`: responses after which the client has gone."""

    cancel_after: int | None = None
    responses: list[InferenceResponse] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.closed.is_set(), "a response after the last one"
        self.responses.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.closed.set()

    def is_cancelled(self) -> bool:
        return self.cancel_after is not None and len(self.responses) >= self.cancel_after

    @property
    def last(self) -> Any:
        assert self.closed.wait(LIMIT_S)
        return self.responses[-1]


@dataclass(frozen=True)
class InferenceRequest:
    tensors: dict[str, np.ndarray]
    sender: ResponseSender = field(default_factory=ResponseSender)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def get_response_sender(self) -> ResponseSender:
        return self.sender
