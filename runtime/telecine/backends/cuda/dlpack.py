"""DLPack capsules through ctypes: device arrays handed over without a copy.

Source: https://dmlc.github.io/dlpack/latest (DLManagedTensor, the unversioned form that every library takes).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from telecine.errors import BackendError

CPU, CUDA = 1, 2  # DLDeviceType
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode, by NumPy's kind
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Prototypes of our own, so that other users of ctypes see no change. PYFUNCTYPE keeps the interpreter's lock.
_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))
_libc = ctypes.CDLL(None)
_malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", _libc))
# What an importer calls last. Python must not run there: it may hold no lock of the interpreter, or an exception.
_FREE = ctypes.cast(_libc.free, ctypes.c_void_p).value


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A tensor that another library exported; `release` gives it back, and comes once."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    contiguous: bool
    release: Callable[[], None]


def export(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
    """A capsule of (shape) contiguous values on a CUDA device, whose owner must outlive every importer.

    The importer frees the description; one that nobody takes stays behind, in its hundred bytes.
    """
    place = _malloc(ctypes.sizeof(_Managed) + ctypes.sizeof(ctypes.c_int64) * len(shape))
    if not place:
        raise MemoryError
    sizes = (ctypes.c_int64 * len(shape)).from_address(place + ctypes.sizeof(_Managed))
    sizes[:] = list(shape)
    managed = _Managed.from_address(place)
    kind = _DataType(_KINDS[dtype.kind], dtype.itemsize * 8, 1)
    managed.tensor = _Tensor(address, _Device(CUDA, device), len(shape), kind, sizes, None, 0)
    managed.context, managed.deleter = None, _FREE
    return _new(place, _NAME, None)


def take(capsule: Any) -> Imported:
    """Take a capsule's tensor over, as its only importer.

    Raises:
        BackendError: the capsule was taken before, or holds values that NumPy has no type for.
    """
    if not _valid(capsule, _NAME):
        raise BackendError(
            "a DLPack capsule that is not a fresh dltensor",
            expected="one that nobody has taken",
            fix="Pass the array itself, not its capsule.",
        )
    place = _pointer(capsule, _NAME)
    managed = _Managed.from_address(place)
    tensor, deleter = managed.tensor, managed.deleter
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kind = next((kind for kind, code in _KINDS.items() if code == tensor.dtype.code), None)
    if kind is None or tensor.dtype.lanes != 1:
        raise BackendError(
            f"a DLPack tensor of type code {tensor.dtype.code}, {tensor.dtype.bits} bits",
            expected="integers, booleans or IEEE floats",
            fix="Convert it to the dtype that the graph's input has.",
        )
    _rename(capsule, _USED)
    steps = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    return Imported(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=np.dtype("bool" if kind == "b" else f"{kind}{tensor.dtype.bits // 8}"),
        device=(tensor.device.type, tensor.device.id),
        contiguous=steps is None or contiguous(shape, steps),
        release=lambda: _Deleter(deleter)(place) if deleter else None,
    )


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...], item: int = 1) -> bool:
    """Whether strides, in units of `item`, are those of C order; axes of one element may have any."""
    step = item
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
