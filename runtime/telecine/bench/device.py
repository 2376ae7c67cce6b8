"""What of a benchmark is a GPU's: the memory that it gave out, and a network's time where none waits for the host."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.session import DeviceSession
from telecine.backends.cuda.stream import Timer
from telecine.bench.spread import Spread
from telecine.errors import BackendError

INTERVAL = 0.005  # seconds between two looks at the memory
WARMUPS, CALLS, REPEATS = 4, 10, 5


class DevicePeak:
    """Context manager that samples what a GPU has given out since it began; `.peak` is the most, in bytes.

    Of all processes on it, weights, arenas and the CUDA context included: `cudaMemGetInfo` knows no others.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DevicePeak:
        self._device = Device.open(self._name)
        self._before = self._used()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        self.peak = max(self.peak, self._used() - self._before)

    def _used(self) -> int:
        self._device.use()
        free, total = self._device.cuda.call("cudaMemGetInfo")
        return int(total) - int(free)


def back_to_back(
    session: Session, feeds: dict[str, npt.NDArray[Any]], *, device: Device, calls: int = CALLS, repeats: int = REPEATS
) -> dict[str, Any]:
    """Seconds of one call of a network on arrays of the device, of calls that are enqueued one behind the other.

    What a loop cannot be quicker than: between two events on the device, with no host in it.

    Raises:
        BackendError: the session's arrays are the host's.
    """
    if not isinstance(session, DeviceSession):
        raise BackendError("a session on the host", expected="one on a GPU", fix="Load the bundle with device='cuda'.")
    shapes = session.output_shapes({name: array.shape for name, array in feeds.items()})
    arrays = feeds | {name: np.empty(shape, session.outputs[name].dtype) for name, shape in shapes.items()}
    with ExitStack() as stack:
        for name, array in arrays.items():
            place = stack.enter_context(DeviceArray(device, array.shape, array.dtype, stream=session.stream))
            place.upload(array)
            session.bind(name, place)
        stack.callback(session.unbind)
        timer = Timer(device)
        stack.callback(timer.close)
        for _ in range(WARMUPS):
            session.enqueue()
        seconds = [_timed(session, timer, device, calls) for _ in range(repeats)]
        device.synchronize()
    return asdict(Spread.of(seconds))


def _timed(session: DeviceSession, timer: Timer, device: Device, calls: int) -> float:
    timer.start(session.stream)
    for _ in range(calls):
        session.enqueue()
    timer.stop(session.stream)
    device.synchronize()
    return timer.seconds() / calls
