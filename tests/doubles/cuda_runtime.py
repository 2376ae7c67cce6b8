"""A double of `cuda.bindings.runtime`.

Work on a stream runs as late as CUDA allows: when the host or another stream waits for it. So a missing wait gives
wrong results, as on a GPU it may. What CUDA leaves undefined is an error here, kept in `violations`:

- work that touches memory which is freed, or was never allocated (CUDA Runtime API, cudaFree);
- freeing memory, a stream's or a device's, that pending work uses;
- two accesses to one allocation, one of them a write, from streams that nothing orders (CUDA C++ Programming Guide,
  "Asynchronous Concurrent Execution": operations of different streams may run in any order or at once).
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from doubles.cuda_api import Handle, api, cudaError_t
from doubles.cuda_graphs import Capture, Graphs, Operation, Region, cudaStreamCaptureMode
from doubles.cuda_memory import Memory, Point, view


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class _Stream:
    def __init__(self, device: int) -> None:
        self.device = device
        self.queue: deque[Callable[[], None]] = deque()
        self.issued = self.done = 0
        self.capture: Capture | None = None
        self.after: dict[int, int] = {}  # the points of other streams that its next operation comes after


class _Event:
    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self.point: Point | None = None
        self.after: dict[int, int] = {}


class CudaDouble(Graphs):
    """The module. `capabilities`: a GPU each. `memory`: bytes of each. `failures[name]`: the code of its next call.
    `elapsed`: milliseconds between any two events."""

    cudaError_t, cudaMemcpyKind, cudaDeviceAttr = cudaError_t, cudaMemcpyKind, cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaEventDefault, cudaEventDisableTiming = 0, 2

    def __init__(
        self,
        *,
        capabilities: Iterable[str] = ("8.9",),
        driver: int = 13000,
        runtime: int = 13000,
        memory: int = 1 << 33,
    ) -> None:
        self.capabilities, self.driver, self.runtime, self.capacity = tuple(capabilities), driver, runtime, memory
        self.memory = Memory()
        self.lock = threading.RLock()
        self.calls: list[str] = []
        self.failures: dict[str, int] = {}
        self.violations: list[str] = []
        self.sticky: cudaError_t | None = None
        self.host: dict[int, int] = {}  # the points that the host has waited for
        self.streams: dict[int, _Stream] = {handle: _Stream(0) for handle in (0, 1, 2)}  # CUDA's default streams
        self.events: dict[int, _Event] = {}
        self.graphs: dict[int, Any] = {}
        self.elapsed = 0.0
        self._current = threading.local()
        self._next = 4096

    # Devices

    @api
    def cudaDriverGetVersion(self) -> Any:
        return self.driver

    @api
    def cudaRuntimeGetVersion(self) -> Any:
        return self.runtime

    @api
    def cudaGetDeviceCount(self) -> Any:
        if self.driver // 1000 < self.runtime // 1000:
            return cudaError_t.cudaErrorInsufficientDriver, None
        return len(self.capabilities) if self.capabilities else (cudaError_t.cudaErrorNoDevice, None)

    @api
    def cudaDeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> Any:
        major, minor = self.capabilities[device].split(".")
        return int(major if attr == cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else minor)

    @api
    def cudaSetDevice(self, device: int) -> Any:
        if device >= len(self.capabilities):
            return (cudaError_t.cudaErrorInvalidDevice,)
        self._current.device = device
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaDeviceSynchronize(self) -> Any:
        for handle, stream in self.streams.items():
            if stream.device == self.current:
                self.drain((handle, stream.issued))
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaGetErrorName(self, error: cudaError_t) -> Any:
        return cudaError_t(error).name.encode()

    @api
    def cudaGetErrorString(self, error: cudaError_t) -> Any:
        return f"the double's {cudaError_t(error).name}".encode()

    @property
    def current(self) -> int:
        return getattr(self._current, "device", 0)

    # Memory

    @api
    def cudaMalloc(self, size: int) -> Any:
        if size == 0:
            return cudaError_t.cudaErrorInvalidValue, None
        if sum(each.size for each in self.memory.live("device", self.current)) + size > self.capacity:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return self.memory.allocate(size, "device", self.current)

    @api
    def cudaMemGetInfo(self) -> Any:
        used = sum(each.size for each in self.memory.live("device", self.current))
        return cudaError_t.cudaSuccess, self.capacity - used, self.capacity

    @api
    def cudaMallocHost(self, size: int) -> Any:
        return self.memory.allocate(size, "host", self.current)

    @api
    def cudaFree(self, devPtr: int) -> Any:
        return self._free(devPtr, "device")

    @api
    def cudaFreeHost(self, ptr: int) -> Any:
        return self._free(ptr, "host")

    @api
    def cudaPointerGetAttributes(self, ptr: int) -> Any:
        found = self.memory.find(ptr)
        return SimpleNamespace(device=found.device if found and found.kind == "device" else -2)

    @api
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Any) -> Any:
        """Between pageable and device memory it is as if synchronous (Runtime API, "API synchronization behavior")."""
        to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        host = self.memory.find(src if to_device else dst, count)
        if host is None and to_device:
            content = view(src, count).copy()
            self.submit(stream, lambda: self.write(dst, content), writes=[(dst, count)])
            return (cudaError_t.cudaSuccess,)
        reads, writes = [(src, count)], [(dst, count)] if host or to_device else []
        self.submit(stream, lambda: view(dst, count).__setitem__(slice(None), view(src, count)), reads, writes)
        if host is None:
            self.drain((int(stream), self.streams[int(stream)].issued))
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: cudaMemcpyKind, stream: Any
    ) -> Any:
        """Within device memory; rows wider than their pitch are invalid (Runtime API, cudaMemcpy2DAsync)."""
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToDevice or width > min(dpitch, spitch):
            return (cudaError_t.cudaErrorInvalidValue,)

        def copy() -> None:
            for row in range(height):
                self.write(dst + row * dpitch, view(src + row * spitch, width))

        reads, writes = ((at, (height - 1) * pitch + width) for at, pitch in ((src, spitch), (dst, dpitch)))
        self.submit(stream, copy, [reads], [writes])
        return (cudaError_t.cudaSuccess,)

    # Streams and events

    @api
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        handle = self._number()
        self.streams[handle] = _Stream(self.current)
        return Handle(handle)

    @api
    def cudaStreamDestroy(self, stream: Any) -> Any:
        """Its work still runs to the end (Runtime API, cudaStreamDestroy)."""
        gone = self.streams.get(int(stream))
        if gone is None:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self.drain((int(stream), gone.issued), by_host=False)
        del self.streams[int(stream)]
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaStreamSynchronize(self, stream: Any) -> Any:
        self.drain((int(stream), self.streams[int(stream)].issued))
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Any:
        """It waits for the latest record before this call; for none, not at all."""
        found, waiting = self.events[int(event)], self.streams[int(stream)]
        if found.point is not None:
            point = found.point
            self.submit(stream, lambda: self.drain(point, by_host=False))
            _merge(waiting.after, found.after)
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        handle = self._number()
        self.events[handle] = _Event(timed=not flags & self.cudaEventDisableTiming)
        return Handle(handle)

    @api
    def cudaEventDestroy(self, event: Any) -> Any:
        return (cudaError_t.cudaSuccess if self.events.pop(int(event), None) else cudaError_t.cudaErrorInvalidValue,)

    @api
    def cudaEventRecord(self, event: Any, stream: Any) -> Any:
        found, recorded = self.events[int(event)], self.streams[int(stream)]
        found.point = (int(stream), recorded.issued)
        found.after = {**recorded.after, int(stream): recorded.issued}
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaEventQuery(self, event: Any) -> Any:
        point = self.events[int(event)].point
        done = point is None or point[0] not in self.streams or self.streams[point[0]].done >= point[1]
        return (cudaError_t.cudaSuccess if done else cudaError_t.cudaErrorNotReady,)

    @api
    def cudaEventSynchronize(self, event: Any) -> Any:
        found = self.events[int(event)]
        if found.point is not None:
            self.drain(found.point, by_host=False)
            _merge(self.host, found.after)
        return (cudaError_t.cudaSuccess,)

    @api
    def cudaEventElapsedTime(self, start: Any, end: Any) -> Any:
        events = [self.events[int(each)] for each in (start, end)]
        if not all(event.timed and event.point for event in events):
            return cudaError_t.cudaErrorInvalidResourceHandle, None
        if any(self.streams[event.point[0]].done < event.point[1] for event in events if event.point):
            return cudaError_t.cudaErrorNotReady, None
        return self.elapsed

    # What the doubles and the tests need of it

    def submit(
        self, stream: Any, work: Callable[[], None], reads: Iterable[Region] = (), writes: Iterable[Region] = (), *,
        given: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Give a stream an operation, which runs when something waits for it; `given` is called each time it is."""
        reads, writes = list(reads), list(writes)
        queue = self.streams[int(stream)]
        if queue.capture is not None:
            queue.capture.operations.append(Operation(work, reads, writes, given))
            return
        given()
        queue.issued += 1
        point = (int(stream), queue.issued)
        for address, size in reads:
            self._watch(address, size, point, writing=False)
        for address, size in writes:
            self._watch(address, size, point, writing=True)

        def run() -> None:
            if all(self.memory.find(address, size) for address, size in (*reads, *writes)):
                work()
            else:
                self._illegal(f"operation {point} uses memory that is not allocated (any more)")

        queue.queue.append(run)

    def drain(self, point: Point, *, by_host: bool = True) -> None:
        """Run a stream's work up to a point. `by_host`: the host waited, so all it submits from now on comes after."""
        handle, until = point
        stream = self.streams.get(handle)
        while stream is not None and stream.done < until:
            stream.done += 1
            stream.queue.popleft()()
        if by_host:
            _merge(self.host, {**(stream.after if stream else {}), handle: until})

    def ordered(self, point: Point, stream: int) -> bool:
        """Whether what a stream is given next comes after a point."""
        handle, number = point
        if handle == stream or handle not in self.streams:
            return True
        return max(self.streams[stream].after.get(handle, 0), self.host.get(handle, 0)) >= number

    def write(self, address: int, content: Any) -> None:
        view(address, len(content))[:] = content

    def idle(self) -> bool:
        return all(not stream.queue for stream in self.streams.values())

    def leftovers(self) -> dict[str, int]:
        """What nobody has freed."""
        return {
            "device": len(self.memory.live("device")),
            "host": len(self.memory.live("host")),
            "streams": len(self.streams) - 3,
            "events": len(self.events),
            "graphs": len(self.graphs),
        }

    def violate(self, rule: str) -> None:
        self.violations.append(rule)

    def _watch(self, address: int, size: int, point: Point, *, writing: bool) -> None:
        """Note an access; one that another stream's may overtake is a race."""
        block = self.memory.find(address, size)
        if block is None:
            self._illegal(f"operation {point} is given memory that is not allocated (any more)")
            return
        before = [block.written, *(block.read if writing else [])]
        if any(other is not None and not self.ordered(other, point[0]) for other in before):
            self.violate(f"operation {point} on memory that another stream is not done with: nothing orders them")
        if writing:
            block.written, block.read = point, []
        else:
            block.read.append(point)

    def _free(self, address: int, kind: str) -> Any:
        block = self.memory.find(address)
        for point in [block.written, *block.read] if block else []:
            if point and point[0] in self.streams and self.streams[point[0]].done < point[1]:
                self.violate(f"memory freed that the pending operation {point} uses")
        if self.memory.free(address, kind) is None:
            return (cudaError_t.cudaErrorInvalidValue,)
        return (cudaError_t.cudaSuccess,)

    def _illegal(self, rule: str) -> None:
        self.violate(rule)
        self.sticky = cudaError_t.cudaErrorIllegalAddress

    def _number(self) -> int:
        self._next += 16
        return self._next


def _merge(into: dict[int, int], points: dict[int, int]) -> None:
    for handle, number in points.items():
        into[handle] = max(into.get(handle, 0), number)
