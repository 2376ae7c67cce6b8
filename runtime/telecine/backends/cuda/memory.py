"""Memory that is kept and grows: on a device, and pinned on the host for asynchronous copies."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.cuda.device import Device


class DeviceMemory:
    """A block of device memory that grows when it must; its content is lost then.

    cudaMalloc aligns to at least 256 bytes (CUDA C++ Programming Guide, "Device Memory Accesses"), as TensorRT asks.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes. Where it grows, no work may still use the old ones.

        Raises:
            BackendError: out of memory.
        """
        if size > self.size:
            self.close()  # first: both together might not fit
            self._device.use()
            self.address, self.size = int(self._device.cuda.call("cudaMalloc", size)), size
        return self.address

    def close(self) -> None:
        if self.address:
            self._device.use()
            address, self.address, self.size = self.address, 0, 0
            self._device.cuda.call("cudaFree", address)


class PinnedMemory:
    """A block of page-locked host memory that grows when it must; its content is lost then."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.address = 0
        self.size = 0

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """(shape) view of its first bytes. Where it grows, nothing may still use the old ones.

        Raises:
            BackendError: out of memory.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size > self.size:
            self.close()
            self._device.use()
            self.address, self.size = int(self._device.cuda.call("cudaMallocHost", size)), size
        block = (ctypes.c_uint8 * size).from_address(self.address)
        return np.frombuffer(memoryview(block), kind).reshape(shape)

    def close(self) -> None:
        if self.address:
            self._device.use()
            address, self.address, self.size = self.address, 0, 0
            self._device.cuda.call("cudaFreeHost", address)
