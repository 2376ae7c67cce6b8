"""Arrays in device memory: ours, and those of other libraries that say where theirs lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.cuda import dlpack
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.memory import DeviceMemory
from telecine.backends.cuda.stream import order
from telecine.errors import BackendError

# CUDA's numbers for its two default streams, in both interfaces.
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2


class DeviceArray:
    """(shape) array in device memory, a context manager that frees it; work on it is ordered by one stream.

    Other libraries take it without a copy by `__dlpack__` or `__cuda_array_interface__` (version 3); both wait for
    `stream`, its handle. Close it after what they made of it.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike, *, stream: int) -> None:
        self.shape, self.dtype, self.stream = tuple(shape), np.dtype(dtype), stream
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._device = device
        self._memory: DeviceMemory | None = DeviceMemory(device)
        self._memory.reserve(max(self.nbytes, 1))

    @property
    def address(self) -> int:
        if self._memory is None:
            raise BackendError("this device array is closed", expected="an open one", fix="Make another.")
        return self._memory.address

    def upload(self, array: npt.NDArray[Any]) -> None:
        """Fill it from an array of its shape and dtype, which may be rewritten on return.

        Raises:
            BackendError: another shape or dtype; CUDA failed.
        """
        self._check(array)
        self._copy(self.address, np.ascontiguousarray(array).ctypes.data, "cudaMemcpyHostToDevice")

    def download(self) -> npt.NDArray[Any]:
        """Its content on the host, once all that its stream was given is done."""
        array = np.empty(self.shape, self.dtype)
        self._copy(array.ctypes.data, self.address, "cudaMemcpyDeviceToHost")
        return array

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32, *, offset: int = 0) -> DeviceView:
        """(shape) part of it that starts `offset` bytes behind its own start."""
        return DeviceView(self, offset, shape, np.dtype(dtype))

    def copy_from(self, source: DeviceArray | DeviceView, *, offset: int = 0) -> None:
        """Fill it, from `offset` bytes on, from an array on the same device; ordered by its stream, without waiting."""
        kind = self._device.cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._device.use()
        self._device.cuda.call(
            "cudaMemcpyAsync", self.address + offset, source.address, source.nbytes, kind, self.stream
        )

    def copy_pieces(self, source: DeviceArray, pieces: int, *, offset: int, pitch: int) -> None:
        """As `copy_from`, in so many equal pieces, whose places here start `pitch` bytes apart."""
        width = source.nbytes // pieces
        kind = self._device.cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._device.use()
        self._device.cuda.call(
            "cudaMemcpy2DAsync", self.address + offset, pitch, source.address, width, width, pieces, kind, self.stream
        )

    def close(self) -> None:
        """Free it. Work that uses it must be done; closing again does nothing."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """An unversioned capsule, which `max_version` allows. `stream` will wait for this array's; -1 says not to."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("telecine hands over device arrays where they are, without a copy")
        if stream != -1:
            order(self._device, self.stream, LEGACY_STREAM if stream is None else stream)
        return dlpack.export(self.address, self.shape, self.dtype, self._device.index)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device.index

    def __enter__(self) -> DeviceArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, array: npt.NDArray[Any]) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise BackendError(
                f"{array.dtype} of shape {array.shape}",
                expected=f"{self.dtype} of shape {self.shape}, as this device array",
                fix="Convert it, or make another device array.",
            )

    def _copy(self, to: int, source: int, kind: str) -> None:
        cuda = self._device.cuda
        self._device.use()
        cuda.call("cudaMemcpyAsync", to, source, self.nbytes, getattr(cuda.api.cudaMemcpyKind, kind), self.stream)
        cuda.call("cudaStreamSynchronize", self.stream)


@dataclass(frozen=True, slots=True)
class DeviceView:
    """(shape) part of a device array, for as long as that is open."""

    owner: DeviceArray
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def address(self) -> int:
        return self.owner.address + self.offset

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self.owner.stream,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Borrowed:
    """(shape) array of another owner in device memory; `stream` orders the owner's work on it, None for no work."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    contiguous: bool
    read_only: bool
    stream: int | None
    owner: object  # keeps its memory
    release: Callable[[], None]


def on_device(array: object) -> bool:
    """Whether an object says that it is an array in CUDA memory."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    ask = getattr(array, "__dlpack_device__", None)
    return ask is not None and ask()[0] == dlpack.CUDA


def borrow(array: Any, device: Device, *, stream: int) -> Borrowed:
    """Where an array lies, for as long as it is not released.

    `__cuda_array_interface__` where it names the owner's stream, which orders work both ways; else `__dlpack__`, whose
    owner makes `stream` wait for its work so far; else `__cuda_array_interface__` without a stream, for finished work.

    Raises:
        BackendError: it lies on another device, or cannot be told by NumPy's types.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None or ("stream" not in interface and hasattr(array, "__dlpack__")):
        return _taken(array, device, stream)
    address, read_only = interface["data"]
    _check_place(address, device)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    return Borrowed(
        address=address, shape=shape, dtype=dtype, read_only=read_only, stream=interface.get("stream"),
        contiguous=strides is None or dlpack.contiguous(shape, tuple(strides), dtype.itemsize),
        owner=array, release=lambda: None,
    )  # fmt: skip


def _taken(array: Any, device: Device, stream: int) -> Borrowed:
    found = dlpack.take(array.__dlpack__(stream=stream))
    if found.device != (dlpack.CUDA, device.index):
        found.release()
        raise _elsewhere(f"DLPack device {found.device}", device)
    return Borrowed(
        address=found.address, shape=found.shape, dtype=found.dtype, contiguous=found.contiguous,
        read_only=False, stream=stream, owner=array, release=found.release,
    )  # fmt: skip


def _check_place(address: int, device: Device) -> None:
    """`__cuda_array_interface__` does not tell the device; CUDA does."""
    attributes = device.cuda.call("cudaPointerGetAttributes", address)
    if attributes.device != device.index:
        raise _elsewhere(f"cuda:{attributes.device}", device)


def _elsewhere(place: str, device: Device) -> BackendError:
    return BackendError(
        f"an array on {place}", expected=f"one on cuda:{device.index}, as the session", fix="Copy it there."
    )
