"""The CUDA double does what it is for: what a GPU may do wrong when the host does not wait, it does, and says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble, cudaError_t, cudaMemcpyKind

TO_DEVICE, TO_HOST = cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToHost
SIZE = 64


@pytest.fixture
def cuda() -> CudaDouble:
    return CudaDouble(capabilities=("8.9", "9.0"))


@pytest.fixture
def stream(cuda: CudaDouble) -> int:
    return int(cuda.cudaStreamCreateWithFlags(1)[1])


@pytest.fixture
def block(cuda: CudaDouble) -> Callable[..., int]:
    """`block("host", 7)`: memory full of sevens."""

    def make(kind: str, value: int = 0) -> int:
        address = (cuda.cudaMalloc if kind == "device" else cuda.cudaMallocHost)(SIZE)[1]
        view(address, SIZE).fill(value)
        return address

    return make


def test_a_copy_waits_for_someone_to_wait(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    host, device, back = block("host", 7), block("device"), block("host")
    cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, stream)
    cuda.cudaMemcpyAsync(back, device, SIZE, TO_HOST, stream)
    assert set(view(back, SIZE)) == {0}
    view(host, SIZE).fill(9)  # before the copy was made: a GPU may see either
    cuda.cudaStreamSynchronize(stream)
    assert set(view(back, SIZE)) == {9}
    assert cuda.violations == []


def test_pageable_memory_is_read_at_once(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    host, device = np.full(SIZE, 7, np.uint8), block("device")
    cuda.cudaMemcpyAsync(device, host.ctypes.data, SIZE, TO_DEVICE, stream)
    host.fill(9)
    back = np.zeros(SIZE, np.uint8)
    cuda.cudaMemcpyAsync(back.ctypes.data, device, SIZE, TO_HOST, stream)
    assert set(back) == {7}


def test_events_say_how_far_a_stream_is(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    first, second = (cuda.cudaEventCreateWithFlags(2)[1] for _ in range(2))
    host, device, other = block("host", 7), block("device"), block("device")
    assert cuda.cudaEventQuery(first) == (cudaError_t.cudaSuccess,)  # never recorded
    for event, target in ((first, device), (second, other)):
        cuda.cudaMemcpyAsync(target, host, SIZE, TO_DEVICE, stream)
        cuda.cudaEventRecord(event, stream)
    assert cuda.cudaEventQuery(first) == (cudaError_t.cudaErrorNotReady,)
    cuda.cudaEventSynchronize(first)
    assert cuda.cudaEventQuery(first) == (cudaError_t.cudaSuccess,)
    assert cuda.cudaEventQuery(second) == (cudaError_t.cudaErrorNotReady,)
    assert set(view(device, SIZE)) == {7}
    assert set(view(other, SIZE)) == {0}


@pytest.mark.parametrize("waits", [True, False])
def test_streams_know_nothing_of_each_other(
    cuda: CudaDouble, stream: int, block: Callable[..., int], waits: bool
) -> None:
    other = int(cuda.cudaStreamCreateWithFlags(1)[1])
    host, device, back = block("host", 7), block("device"), block("host")
    cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, stream)
    if waits:
        event = cuda.cudaEventCreateWithFlags(2)[1]
        cuda.cudaEventRecord(event, stream)
        cuda.cudaStreamWaitEvent(other, event, 0)
        cuda.cudaEventDestroy(event)
    cuda.cudaMemcpyAsync(back, device, SIZE, TO_HOST, other)
    cuda.cudaStreamSynchronize(other)
    assert set(view(back, SIZE)) == ({7} if waits else {0})
    assert bool(cuda.violations) != waits


def test_the_host_may_order_streams(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    other = int(cuda.cudaStreamCreateWithFlags(1)[1])
    host, device = block("host", 7), block("device")
    cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, stream)
    cuda.cudaStreamSynchronize(stream)
    cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, other)
    cuda.cudaDeviceSynchronize()
    assert cuda.violations == []


def test_freed_memory_breaks_the_context(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    host, device = block("host"), block("device")
    cuda.cudaFree(device)
    assert cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, stream)[0] == cudaError_t.cudaErrorIllegalAddress
    assert cuda.cudaMalloc(SIZE)[0] == cudaError_t.cudaErrorIllegalAddress
    assert "not allocated" in cuda.violations[0]


def test_freeing_under_pending_work(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    host, device = block("host"), block("device")
    cuda.cudaMemcpyAsync(device, host, SIZE, TO_DEVICE, stream)
    cuda.cudaFreeHost(host)
    assert "freed that the pending operation" in cuda.violations[0]


def test_memory_is_never_what_was_expected(cuda: CudaDouble) -> None:
    address = cuda.cudaMalloc(1000)[1]
    assert address % 256 == 0
    assert set(view(address, 1000)) == {0xCD}
    cuda.cudaFree(address)
    assert set(view(address, 1000)) == {0xDD}
    assert cuda.cudaFree(address) == (cudaError_t.cudaErrorInvalidValue,)


def test_memory_ends(cuda: CudaDouble) -> None:
    cuda.capacity = 1000
    address = cuda.cudaMalloc(600)[1]
    assert cuda.cudaMalloc(600) == (cudaError_t.cudaErrorMemoryAllocation, None)
    cuda.cudaSetDevice(1)
    assert cuda.cudaMalloc(600)[0] == cudaError_t.cudaSuccess  # of another GPU
    cuda.cudaFree(address)
    cuda.cudaSetDevice(0)
    assert cuda.cudaMalloc(600)[0] == cudaError_t.cudaSuccess


def test_failures_on_demand(cuda: CudaDouble) -> None:
    cuda.failures["cudaMalloc"] = 2
    assert cuda.cudaMalloc(1) == (cudaError_t.cudaErrorMemoryAllocation, None)
    assert cuda.cudaMalloc(1)[0] == cudaError_t.cudaSuccess


def test_leftovers(cuda: CudaDouble, stream: int, block: Callable[..., int]) -> None:
    block("device"), block("host"), block("host")
    cuda.cudaEventCreateWithFlags(2)
    assert cuda.leftovers() == {"device": 1, "host": 2, "streams": 1, "events": 1, "graphs": 0}
