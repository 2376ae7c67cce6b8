"""One input or output of an execution context: what is bound to it, and the memory that host arrays pass through."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.axes import Shape
from telecine.backends.cuda.array import Borrowed
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.memory import DeviceMemory, PinnedMemory


class Slot:
    """Its host array is copied through pinned memory, cast to the plan's dtype; its device array is used in place.

    Memory is kept from call to call, and grows with the sizes.
    """

    def __init__(self, device: Device, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._device = device
        self._memory = DeviceMemory(device)
        self._pinned = PinnedMemory(device)
        self._staging: npt.NDArray[Any] | None = None
        self.bound: npt.NDArray[Any] | Borrowed | None = None

    @property
    def shape(self) -> Shape:
        """Of what is bound."""
        assert self.bound is not None
        return self.bound.shape

    @property
    def on_host(self) -> bool:
        return isinstance(self.bound, np.ndarray)

    @property
    def owner_stream(self) -> int | None:
        """The stream of a device array's owner, where it has one."""
        return self.bound.stream if isinstance(self.bound, Borrowed) else None

    def address(self) -> int:
        """Where TensorRT finds it. Where memory grows, no work may still use the old one.

        Raises:
            BackendError: out of memory.
        """
        if isinstance(self.bound, Borrowed):
            return self.bound.address
        if self._staging is None or self._staging.shape != self.shape:
            self._staging = None  # first: it is a view of what may be freed
            self._staging = self._pinned.array(self.shape, self.dtype)
        return self._memory.reserve(self._staging.nbytes)

    def upload(self, stream: int) -> None:
        """Copy a host array to the device. It may be rewritten on return; the copy must be done before the next."""
        if isinstance(self.bound, np.ndarray) and self._staging is not None:
            np.copyto(self._staging, self.bound, casting="unsafe")
            self._copy(self._memory.address, self._staging.ctypes.data, "cudaMemcpyHostToDevice", stream)

    def download(self, stream: int) -> None:
        """Copy to pinned memory what a host array gets by `finish`, once the stream has come that far."""
        if self.on_host and self._staging is not None:
            self._copy(self._staging.ctypes.data, self._memory.address, "cudaMemcpyDeviceToHost", stream)

    def finish(self) -> None:
        if isinstance(self.bound, np.ndarray) and self._staging is not None:
            np.copyto(self.bound, self._staging, casting="unsafe")

    def close(self) -> None:
        self.bound = self._staging = None
        self._memory.close()
        self._pinned.close()

    def _copy(self, to: int, source: int, kind: str, stream: int) -> None:
        assert self._staging is not None
        cuda = self._device.cuda
        cuda.call("cudaMemcpyAsync", to, source, self._staging.nbytes, getattr(cuda.api.cudaMemcpyKind, kind), stream)
