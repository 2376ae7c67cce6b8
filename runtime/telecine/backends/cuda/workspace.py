"""Device memory that a session's caller keeps its arrays in from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device

# What cudaMalloc gives, and kernels may count on. NvInferRuntime.h, IExecutionContext::setTensorAddress: "The pointer
# must have at least 256-byte alignment."
ALIGNMENT = 256


class Workspace:
    """Named arrays on a device, whose work one `stream` orders. They stay, with their addresses, until they are asked
    for in another size."""

    def __init__(self, device: Device, stream: int) -> None:
        self.device, self.stream = device, stream
        self._arrays: dict[str, DeviceArray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> DeviceArray:
        """(shape) array, the one of an earlier call where that had the same shape and type; it may hold anything.

        Raises:
            BackendError: out of memory.
        """
        kept = self._arrays.get(name)
        if kept is None or (kept.shape, kept.dtype) != (shape, np.dtype(dtype)):
            if kept is not None:
                del self._arrays[name]
                self.synchronize()  # what used it is done
                kept.close()
            self._arrays[name] = DeviceArray(self.device, shape, dtype, stream=self.stream)
        return self._arrays[name]

    def upload(self, name: str, array: npt.NDArray[Any]) -> DeviceArray:
        """`array` with a host array's content.

        Raises:
            BackendError: out of memory, or CUDA failed.
        """
        made = self.array(name, array.shape, array.dtype)
        made.upload(array)
        return made

    def synchronize(self) -> None:
        """Wait for all that the stream was given."""
        self.device.use()
        self.device.cuda.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free all. Work on it must be done."""
        while self._arrays:
            self._arrays.popitem()[1].close()


def offsets(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, int], int]:
    """Where arrays lie in one block, each aligned as kernels need it, and the bytes of the block."""
    places, size = {}, 0
    for name, array in arrays.items():
        places[name] = size
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return places, size
