"""What every function of the CUDA double has: its status codes, handles, and how it is called."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Handle:
    """A `cudaStream_t` or `cudaEvent_t`: a number with a type."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


def api(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the API: one call at a time, counted, and failing when a test asks it to."""

    @functools.wraps(function)
    def call(self: Any, *arguments: Any) -> tuple[Any, ...]:
        with self.lock:
            self.calls.append(function.__name__)
            code = self.failures.pop(function.__name__, None)
            if code is not None:
                return cudaError_t(code), None
            if self.forbidden(function.__name__):
                return cudaError_t.cudaErrorStreamCaptureUnsupported, None
            result = function(self, *arguments)
            if self.sticky and function.__name__ not in ("cudaGetErrorName", "cudaGetErrorString"):
                return self.sticky, None  # an illegal access breaks the context for every later call
            return result if isinstance(result, tuple) else (cudaError_t.cudaSuccess, result)

    return call
