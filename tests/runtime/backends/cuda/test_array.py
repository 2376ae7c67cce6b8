"""Device arrays and their two interfaces; NumPy reads what the double's device memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble

from telecine.backends.cuda import dlpack
from telecine.backends.cuda.array import DeviceArray, borrow, on_device
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.memory import DeviceMemory, PinnedMemory
from telecine.backends.cuda.stream import Stream
from telecine.errors import BackendError

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def device(gpu: CudaDouble) -> Device:
    return Device.open("cuda")


@pytest.fixture
def stream(device: Device) -> Iterator[Stream]:
    stream = Stream(device)
    yield stream
    stream.close()


@pytest.fixture
def array(device: Device, stream: Stream) -> Iterator[DeviceArray]:
    with DeviceArray(device, VALUES.shape, VALUES.dtype, stream=stream.handle) as array:
        array.upload(VALUES)
        yield array


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 4), (5, 1, 1)])
def test_there_and_back(device: Device, stream: Stream, dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)
    with DeviceArray(device, shape, dtype, stream=stream.handle) as array:
        array.upload(values)
        np.testing.assert_array_equal(array.download(), values)
        for other in (array, only(array, "__dlpack__"), only(array, "__cuda_array_interface__")):
            found = borrow(other, device, stream=stream.handle)
            assert (found.shape, found.dtype, found.address) == (shape, np.dtype(dtype), array.address)
            assert found.contiguous
            assert not found.read_only
            found.release()


def only(array: DeviceArray, interface: str) -> Any:
    """As a library's array that offers one interface."""
    if interface == "__dlpack__":
        return SimpleNamespace(__dlpack__=array.__dlpack__, __dlpack_device__=array.__dlpack_device__)
    return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)


def test_what_the_interface_says(array: DeviceArray, stream: Stream) -> None:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3."""
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3, 4), "typestr": "<f4", "data": (array.address, False), "strides": None, "version": 3,
        "stream": stream.handle,
    }  # fmt: skip
    assert array.__dlpack_device__() == (2, 0)


def test_an_array_of_another_shape_or_dtype(array: DeviceArray) -> None:
    for other in (VALUES[0], VALUES.astype(np.float64)):
        with pytest.raises(BackendError, match=r"expected float32 of shape \(2, 3, 4\)"):
            array.upload(other)


def test_a_closed_array(device: Device, stream: Stream) -> None:
    array = DeviceArray(device, (1,), "float32", stream=stream.handle)
    array.close()
    array.close()
    for use in (array.download, lambda: array.__cuda_array_interface__, array.__dlpack__):
        with pytest.raises(BackendError, match="this device array is closed"):
            use()


class TestDlpack:
    def test_the_consumers_stream_waits(self, array: DeviceArray, device: Device, gpu: CudaDouble) -> None:
        """Work on the array's stream that is not done when it is handed over."""
        pinned, other = PinnedMemory(device), Stream(device)
        host = pinned.array(VALUES.shape, VALUES.dtype)
        host[:] = VALUES * 2
        kind = gpu.cudaMemcpyKind
        gpu.cudaMemcpyAsync(array.address, host.ctypes.data, host.nbytes, kind.cudaMemcpyHostToDevice, array.stream)
        found = borrow(only(array, "__dlpack__"), device, stream=other.handle)
        back = PinnedMemory(device)
        copy = back.array(VALUES.shape, VALUES.dtype)
        gpu.cudaMemcpyAsync(copy.ctypes.data, found.address, copy.nbytes, kind.cudaMemcpyDeviceToHost, other.handle)
        other.synchronize()
        np.testing.assert_array_equal(copy, VALUES * 2)
        found.release()
        for each in (pinned, back, other):
            each.close()

    def test_a_capsule_is_taken_once(self, array: DeviceArray) -> None:
        capsule = array.__dlpack__()
        taken = dlpack.take(capsule)
        with pytest.raises(BackendError, match="not a fresh dltensor"):
            dlpack.take(capsule)
        taken.release()

    def test_other_libraries_capsules(self) -> None:
        """NumPy exports too: strides and types of a library that knows nothing of us."""
        for values in (VALUES, VALUES[:, ::2], np.arange(3, dtype=np.int16), np.ones((2, 1), bool)):
            found = dlpack.take(values.__dlpack__())
            assert (found.shape, found.dtype, found.device) == (values.shape, values.dtype, (1, 0))
            assert found.address == values.ctypes.data
            assert found.contiguous == values.flags.c_contiguous
            found.release()

    def test_types_that_numpy_lacks(self) -> None:
        torch = pytest.importorskip("torch")
        with pytest.raises(BackendError, match="a DLPack tensor of type code 4, 16 bits"):
            dlpack.take(torch.zeros(2, dtype=torch.bfloat16).__dlpack__())

    def test_numpy_reads_the_same_header(self, array: DeviceArray) -> None:
        """It takes the capsule to pieces, and refuses the device."""
        with pytest.raises((BufferError, RuntimeError), match="device"):
            np.from_dlpack(array)

    @pytest.mark.parametrize("options", [{"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}])
    def test_no_copies(self, array: DeviceArray, options: dict[str, Any]) -> None:
        with pytest.raises(BufferError):
            array.__dlpack__(**options)

    def test_torch_reads_the_same_header(self, array: DeviceArray) -> None:
        """torch takes the capsule to pieces, and refuses the device: this torch or machine has no CUDA."""
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("the double's addresses are not a GPU's")
        with pytest.raises(Exception, match=r"(?i)cuda|device"):
            torch.from_dlpack(array)


class TestPlaces:
    def test_host_arrays_are_not_on_a_device(self, array: DeviceArray) -> None:
        torch = pytest.importorskip("torch")
        assert on_device(array)
        assert on_device(only(array, "__dlpack__"))
        assert not any(map(on_device, (VALUES, torch.zeros(2), [1], None)))

    @pytest.mark.parametrize("interface", ["__dlpack__", "__cuda_array_interface__"])
    def test_another_device(self, gpu: CudaDouble, interface: str) -> None:
        gpu.capabilities = ("8.9", "8.9")
        devices = [Device.open(f"cuda:{index}") for index in range(2)]
        with (
            DeviceArray(devices[1], (2,), "float32", stream=1) as array,
            pytest.raises(BackendError, match="expected one on cuda:0, as the session"),
        ):
            borrow(only(array, interface), devices[0], stream=1)

    def test_strides(self, array: DeviceArray, device: Device) -> None:
        base = array.__cuda_array_interface__
        for strides, contiguous in (((48, 16, 4), True), ((4, 8, 24), False)):
            other = SimpleNamespace(__cuda_array_interface__=base | {"strides": strides})
            assert borrow(other, device, stream=1).contiguous == contiguous


class TestMemory:
    def test_it_grows_and_is_kept(self, device: Device, gpu: CudaDouble) -> None:
        memory = DeviceMemory(device)
        first = memory.reserve(100)
        assert memory.reserve(50) == memory.reserve(100) == first
        assert first % 256 == 0
        memory.reserve(5000)
        assert len(gpu.memory.live("device")) == 1
        memory.close()
        memory.close()

    def test_what_does_not_fit_leaves_nothing_behind(self, device: Device, gpu: CudaDouble) -> None:
        gpu.capacity = 1000
        memory = DeviceMemory(device)
        memory.reserve(600)
        with pytest.raises(BackendError, match="out of memory"):
            memory.reserve(2000)
        memory.reserve(900)  # the first block is not in its way
        memory.close()

    def test_pinned_arrays_are_views(self, device: Device, gpu: CudaDouble) -> None:
        memory = PinnedMemory(device)
        array = memory.array((2, 3), np.float32)
        array[:] = 7
        assert (view(memory.address, 24).view(np.float32) == 7).all()
        assert memory.array((3,), np.int16).ctypes.data == memory.address
        del array
        memory.close()
