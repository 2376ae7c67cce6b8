"""Streams and events: the order of work on a device."""

from __future__ import annotations

from typing import Any

from telecine.backends.cuda.device import Device
from telecine.backends.cuda.library import NOT_READY
from telecine.errors import BackendError


class Stream:
    """A stream of its own, which neither waits for the legacy default stream nor makes it wait; closed by `close`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        device.use()
        flags = device.cuda.api.cudaStreamNonBlocking
        self._stream: Any = device.cuda.call("cudaStreamCreateWithFlags", flags)

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, as a number: what other libraries take."""
        return int(self._stream)

    def synchronize(self) -> None:
        """Wait for all of its work."""
        self._device.cuda.call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        if self._stream is not None:
            self._device.use()
            self._device.cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None


class Event:
    """A point in a stream's work that others wait for. Before its first `record`, waiting does nothing."""

    def __init__(self, device: Device) -> None:
        self._device = device
        device.use()
        flags = device.cuda.api.cudaEventDisableTiming
        self._event: Any = device.cuda.call("cudaEventCreateWithFlags", flags)

    def record(self, stream: int) -> None:
        """Mark the end of what this stream was given so far."""
        self._device.cuda.call("cudaEventRecord", self._event, stream)

    def hold(self, stream: int) -> None:
        """Let a stream's later work wait on the device, without holding up the host."""
        self._device.cuda.call("cudaStreamWaitEvent", stream, self._event, 0)

    def reached(self) -> bool:
        """Whether what was marked is done."""
        return _reached(self._device, self._event)

    def synchronize(self) -> None:
        """Hold up the host until it is reached."""
        self._device.cuda.call("cudaEventSynchronize", self._event)

    def close(self) -> None:
        if self._event is not None:
            self._device.use()
            self._device.cuda.call("cudaEventDestroy", self._event)
            self._event = None


def _reached(device: Device, event: Any) -> bool:
    status = device.cuda.api.cudaEventQuery(event)[0]
    if int(status) == NOT_READY:
        return False
    device.cuda.check("cudaEventQuery", status)
    return True


def order(device: Device, first: int, then: int) -> None:
    """Let all later work of the stream `then` wait for what `first` was given so far."""
    if first == then:
        return
    event = Event(device)
    try:
        event.record(first)
        event.hold(then)
    finally:
        event.close()  # CUDA keeps what it needs of a recorded event until the work is done


class Timer:
    """Seconds that a device works between two points of a stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        device.use()
        flags = device.cuda.api.cudaEventDefault
        self._events: list[Any] = []
        try:
            for _ in range(2):
                self._events.append(device.cuda.call("cudaEventCreateWithFlags", flags))
        except BackendError:
            self.close()
            raise

    def start(self, stream: int) -> None:
        self._device.cuda.call("cudaEventRecord", self._events[0], stream)

    def stop(self, stream: int) -> None:
        self._device.cuda.call("cudaEventRecord", self._events[1], stream)

    def stopped(self) -> bool:
        """Whether the device has come to the second point."""
        return _reached(self._device, self._events[1])

    def seconds(self) -> float:
        """Once it is `stopped`."""
        return float(self._device.cuda.call("cudaEventElapsedTime", *self._events)) / 1e3

    def close(self) -> None:
        self._device.use()
        while self._events:
            self._device.cuda.call("cudaEventDestroy", self._events.pop())
