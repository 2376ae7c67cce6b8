"""CUDA graphs: what a network gives a stream is recorded once, and then given as a whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Any

from telecine.backends.cuda.device import Device
from telecine.backends.cuda.options import CudaGraphs
from telecine.backends.cuda.stream import Timer
from telecine.errors import BackendError

Launch = Callable[[], bool]

KEPT = 8  # sets of addresses that are remembered: a loop alternates between a few
# From this part of the device's time on, the host's time to launch is what holds a network up.
LAUNCH_BOUND = 0.5
# The legacy default stream cannot be captured (CUDA Runtime API, cudaStreamBeginCapture).
UNCAPTURED_STREAMS = (0, 1)
LOG = logging.getLogger(__name__)


class Launches:
    """Launches of one network in shapes that stay until `forget`, as CUDA graphs where they pay.

    The first launch with a set of addresses is plain: the network may still allocate or choose kernels. True captures
    the second. "auto" times the second, and captures where the host took at least half as long to launch it as the
    device to run it: such a network waits for its launches, and a graph gives them all at once. Large ones keep the
    device busy for longer; a graph would gain nothing. A capture that fails is not tried again.
    """

    def __init__(self, device: Device, graphs: CudaGraphs) -> None:
        self._device, self._graphs = device, graphs
        self._seen: dict[Hashable, _Seen] = {}  # the latest used last

    def launch(self, key: Hashable, stream: int, plain: Launch) -> bool:
        """Give a stream what `plain` gives it, which is the same for the same key. Returns what `plain` does.

        Raises:
            BackendError: CUDA failed.
        """
        if self._graphs is False or stream in UNCAPTURED_STREAMS:
            return plain()
        seen = self._seen.pop(key, None)
        if seen is None:
            self._make_room(stream)
            seen = _Seen()
            done = plain()
        else:
            done = self._again(seen, stream, plain)
        self._seen[key] = seen
        return done

    def forget(self) -> None:
        """Drop every graph: shapes change, or memory moves. None may still run."""
        while self._seen:
            self._drop(self._seen.popitem()[1])

    def _again(self, seen: _Seen, stream: int, plain: Launch) -> bool:
        if seen.graph is None and not seen.plain and self._pays(seen):
            seen.graph = self._capture(stream, plain)
            seen.plain = seen.graph is None
        if seen.graph is not None:
            self._device.cuda.call("cudaGraphLaunch", seen.graph, stream)
            return True
        if seen.plain or seen.timer is not None:
            return plain()
        seen.timer = Timer(self._device)
        seen.timer.start(stream)
        start = time.perf_counter()
        done = plain()
        seen.host_seconds = time.perf_counter() - start
        seen.timer.stop(stream)
        return done

    def _pays(self, seen: _Seen) -> bool:
        """Whether to capture now; where it never will, `seen.plain` says so."""
        if self._graphs is True:
            return True
        if seen.timer is None or not seen.timer.stopped():
            return False
        device_seconds = seen.timer.seconds()
        seen.close_timer()
        seen.plain = seen.host_seconds < LAUNCH_BOUND * device_seconds
        return not seen.plain

    def _capture(self, stream: int, plain: Launch) -> Any | None:
        """An executable graph of what `plain` gives a stream; None, with a warning, where it cannot be captured."""
        cuda = self._device.cuda
        graph = None
        try:
            # Other threads may allocate meanwhile, which the global mode would forbid them.
            cuda.call("cudaStreamBeginCapture", stream, cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            try:
                done = plain()
            finally:
                graph = cuda.call("cudaStreamEndCapture", stream)
            if not done:
                raise BackendError("the network refused", expected="its launches", fix="Use cuda_graphs=False.")
            return cuda.call("cudaGraphInstantiate", graph, 0)
        except BackendError as error:
            LOG.warning("no CUDA graph is used, as capturing one failed: %s", error.got)
            return None
        finally:
            if graph is not None:
                cuda.call("cudaGraphDestroy", graph)

    def _make_room(self, stream: int) -> None:
        if len(self._seen) >= KEPT:
            oldest = self._seen.pop(next(iter(self._seen)))
            if oldest.graph is not None:
                self._device.cuda.call("cudaStreamSynchronize", stream)
            self._drop(oldest)

    def _drop(self, seen: _Seen) -> None:
        seen.close_timer()
        if seen.graph is not None:
            self._device.cuda.call("cudaGraphExecDestroy", seen.graph)


class _Seen:
    """A set of addresses that was launched: timed, captured, or found not to pay (`plain`)."""

    def __init__(self) -> None:
        self.graph: Any = None
        self.plain = False
        self.timer: Timer | None = None
        self.host_seconds = 0.0

    def close_timer(self) -> None:
        if self.timer is not None:
            self.timer.close()
            self.timer = None
