"""Stream capture and CUDA graphs of the CUDA double: what a stream is given is recorded, to be given again.

The rules are the CUDA Runtime API's, "Stream Management" and "Graph Management": a captured operation does not run; the
legacy stream is not captured; while a thread captures, it may not allocate or wait (no thread may, in the global mode),
and one that does spoils the capture. A graph has the addresses that it was captured with.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from doubles.cuda_api import Handle, api, cudaError_t

Region = tuple[int, int]
FORBIDDEN = {
    "cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost", "cudaStreamSynchronize", "cudaDeviceSynchronize",
    "cudaEventSynchronize", "cudaEventQuery",
}  # fmt: skip


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


@dataclass(eq=False)
class Operation:
    work: Callable[[], None]
    reads: list[Region]
    writes: list[Region]
    given: Callable[[], None]


@dataclass(eq=False)
class Capture:
    """What a stream was given since it captures."""

    mode: cudaStreamCaptureMode
    thread: int = field(default_factory=threading.get_ident)
    spoilt: bool = False
    operations: list[Operation] = field(default_factory=list)

    def forbids(self, function: str) -> bool:
        if self.mode == cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed or function not in FORBIDDEN:
            return False
        return self.mode == cudaStreamCaptureMode.cudaStreamCaptureModeGlobal or self.thread == threading.get_ident()


@dataclass(eq=False)
class Executable:
    operations: list[Operation]
    launched: tuple[int, int] | None = None  # the latest, as (stream, how many operations it had been given)


class Graphs:
    """A part of `CudaDouble`."""

    streams: dict[int, Any]
    graphs: dict[int, Any]
    submit: Callable[..., None]
    violate: Callable[[str], None]
    _number: Callable[[], int]

    @api
    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> Any:
        found = self.streams[int(stream)]
        if int(stream) in (0, 1):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if found.capture is not None:
            return (cudaError_t.cudaErrorIllegalState,)
        found.capture = Capture(mode)
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        found = self.streams[int(stream)]
        if found.capture is None:
            return cudaError_t.cudaErrorIllegalState, None
        capture, found.capture = found.capture, None
        if capture.spoilt:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._keep(capture.operations)

    @api
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._keep(Executable(self.graphs[int(graph)]))

    @api
    def cudaGraphDestroy(self, graph: Any) -> Any:
        return (
            cudaError_t.cudaSuccess
            if self.graphs.pop(int(graph), None) is not None
            else cudaError_t.cudaErrorInvalidValue,
        )

    @api
    def cudaGraphExecDestroy(self, graphExec: Any) -> Any:
        gone = self.graphs.pop(int(graphExec))
        stream, number = gone.launched or (-1, 0)
        if stream in self.streams and self.streams[stream].done < number:
            self.violate("a CUDA graph is destroyed that has not run to its end")
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> Any:
        found = self.graphs[int(graphExec)]
        for each in found.operations:
            self.submit(stream, each.work, each.reads, each.writes, given=each.given)
        found.launched = (int(stream), self.streams[int(stream)].issued)
        return (cudaError_t.cudaSuccess,)

    def capturing(self, stream: int) -> bool:
        return self.streams[stream].capture is not None

    def forbidden(self, function: str) -> bool:
        """Whether a capture forbids a call, which spoils it."""
        captures = [each.capture for each in self.streams.values() if each.capture and each.capture.forbids(function)]
        for capture in captures:
            capture.spoilt = True
        return bool(captures)

    def _keep(self, content: Any) -> Any:
        number = self._number()
        self.graphs[number] = content
        return Handle(number)
