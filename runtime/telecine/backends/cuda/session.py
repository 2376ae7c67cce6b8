"""What sessions on a GPU share: arrays bound in place or copied through pinned memory, and the order of streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from telecine.backends.base import Buffer, DeviceBuffer, Session
from telecine.backends.cuda.array import Borrowed, borrow, on_device
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.slot import Slot
from telecine.backends.cuda.stream import Event, order
from telecine.backends.cuda.workspace import ALIGNMENT, Workspace
from telecine.errors import BackendError
from telecine.manifest import Graph


class DeviceSession(Session):
    """One graph on a GPU.

    Host arrays are copied in and out, and `enqueue` waits for them; with device arrays alone it does not wait. Work on
    a device array is ordered with its owner's stream where the array names one (`__cuda_array_interface__`, version 3);
    others (DLPack) are ready once the enqueued stream is, `stream` where none was named.
    """

    def __init__(self, graph: Graph, device: Device, dtypes: Mapping[str, np.dtype[Any]], stack: ExitStack) -> None:
        """`dtypes` are those of the arrays on the device, by name. `stack` gets what must be closed."""
        super().__init__(graph)
        self._graph, self._device = graph, device
        self._last: int | None = None  # the stream of the latest call
        self._retired: list[Callable[[], None]] = []  # device arrays to give back once that call is done
        self._ready = False  # whether the backend was told of all that is bound
        self._copied, self._done = Event(device), Event(device)
        stack.callback(self._done.close)
        stack.callback(self._copied.close)
        self._slots = {name: Slot(device, dtype) for name, dtype in dtypes.items()}
        for slot in self._slots.values():
            stack.callback(slot.close)
        self._workspace: Workspace | None = None
        stack.callback(self._free_workspace)

    @property
    def workspace(self) -> Workspace:
        if self._workspace is None:
            self._workspace = Workspace(self._device, self.stream)
        return self._workspace

    def _free_workspace(self) -> None:
        if self._workspace is not None:
            self._workspace.close()

    @property
    @abstractmethod
    def stream(self) -> int:
        """The handle of the stream that it runs on where `enqueue` is told none."""

    @abstractmethod
    def _prepare(self, handle: int) -> None:
        """Tell the backend of shapes and addresses that have changed; its work will run on this stream.

        Raises:
            BackendError: it refuses one, or memory runs out.
        """

    @abstractmethod
    def _launch(self, handle: int) -> None:
        """Give a stream the graph.

        Raises:
            BackendError: it failed.
        """

    def _runs_on(self, stream: int) -> int:
        """The stream that does the work of a call that names `stream`; 0 is none."""
        return stream or self.stream

    def bind(self, name: str, buffer: Buffer | DeviceBuffer) -> None:
        self.check_open()
        if on_device(buffer):
            self.check_name(name)
            self._device.use()
            found = borrow(buffer, self._device, stream=self.stream)
            try:
                self._check_device_array(name, found)
            except BackendError:
                found.release()
                raise
            self._retire(name)
            self._slots[name].bound = found
        else:
            self.check_buffer(name, buffer)
            self._retire(name)
            self._slots[name].bound = np.asarray(buffer)
        self._ready = False

    def unbind(self) -> None:
        if self.closed:
            return
        self._device.use()
        for name in self._slots:
            self._retire(name)
            self._slots[name].bound = None
        if self._retired:
            self._done.synchronize()
            self._give_back()
        self._ready = False

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        self._device.use()
        handle = self._runs_on(stream)
        if not self._ready:
            self.check_bound({name: slot.bound for name, slot in self._slots.items() if slot.bound is not None})
        others = self._wait_for_others(handle, stream)
        if not self._ready:
            self._prepare(handle)
            self._ready = True
        self._upload(handle)
        self._launch(handle)
        self._download(handle)
        for other in others:
            self._done.hold(other)
        if self._retired and self._done.reached():
            self._give_back()

    def _wait_for_others(self, handle: int, stream: int) -> set[int]:
        """Let a stream wait for the latest call's, the caller's and those of device arrays' owners: returns these."""
        if self._last not in (None, handle):
            self._done.hold(handle)
        streams = {slot.owner_stream for slot in self._slots.values()} | {stream or None}
        others = {other for other in streams if other is not None and other != handle}
        for other in others:
            order(self._device, other, handle)
        return others

    def _upload(self, handle: int) -> None:
        self._copied.synchronize()  # or the latest call's inputs might not have left their pinned memory
        for name in self.inputs:
            self._slots[name].upload(handle)
        self._copied.record(handle)

    def _download(self, handle: int) -> None:
        """Copy outputs to host arrays, and wait for them; device arrays alone are not waited for."""
        outputs = [self._slots[name] for name in self.outputs]
        for slot in outputs:
            slot.download(handle)
        self._done.record(handle)
        self._last = handle
        if any(slot.on_host for slot in outputs):
            self._done.synchronize()
            for slot in outputs:
                slot.finish()

    def _wait(self) -> None:
        """For all of its work: for inputs' copies too, which a launch that failed did not wait for."""
        self._copied.synchronize()
        self._done.synchronize()

    def _check_device_array(self, name: str, array: Borrowed) -> None:
        wanted = self._slots[name].dtype
        if array.dtype != wanted:
            problem = str(array.dtype)
        elif not array.contiguous:
            problem = "not contiguous"
        elif array.address % ALIGNMENT:
            problem = f"{array.address % ALIGNMENT} bytes off the alignment that kernels need"
        elif array.read_only and name in self.outputs:
            problem = "read-only, and an output"
        else:
            return
        raise BackendError(
            f"{name} in device memory is {problem}",
            expected=f"contiguous {wanted}, aligned to {ALIGNMENT} bytes",
            fix="Copy it into an array of its own, in this dtype.",
        )

    def _retire(self, name: str) -> None:
        """Give a device array back, at once or when the work on it is done."""
        bound = self._slots[name].bound
        if isinstance(bound, Borrowed):
            self._retired.append(bound.release)

    def _give_back(self) -> None:
        while self._retired:
            self._retired.pop()()
