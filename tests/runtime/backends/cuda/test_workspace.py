"""Arrays that stay between runs, their parts, and copies between them that the host does not wait for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble

from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.stream import Stream
from telecine.backends.cuda.workspace import ALIGNMENT, Workspace, offsets
from telecine.errors import BackendError


@pytest.fixture
def workspace(gpu: CudaDouble) -> Iterator[Workspace]:
    device = Device.open("cuda")
    stream = Stream(device)
    made = Workspace(device, stream.handle)
    yield made
    made.close()
    stream.close()


def test_an_array_keeps_its_address_until_it_has_another_size(workspace: Workspace, gpu: CudaDouble) -> None:
    first = workspace.upload("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    address = first.address
    assert workspace.array("b", (2, 3)).address != address
    assert workspace.array("a", (2, 3)) is first
    np.testing.assert_array_equal(first.download(), [[0, 1, 2], [3, 4, 5]])
    gpu.calls.clear()
    other = workspace.array("a", (2, 3), np.int32)
    assert gpu.calls.index("cudaStreamSynchronize") < gpu.calls.index("cudaFree") < gpu.calls.index("cudaMalloc")
    assert other.dtype == np.int32
    view = first.view((1,))
    with pytest.raises(BackendError, match="closed"):
        view.address  # noqa: B018


def test_copies_are_ordered_by_the_stream_alone(workspace: Workspace, gpu: CudaDouble) -> None:
    source = workspace.upload("source", np.arange(6, dtype=np.float32))
    target = workspace.upload("target", np.zeros((3, 6), np.float32))
    gpu.calls.clear()
    target.copy_from(source, offset=source.nbytes)
    target.copy_from(source.view((2,), offset=16), offset=2 * source.nbytes)
    assert "cudaStreamSynchronize" not in gpu.calls
    np.testing.assert_array_equal(target.download(), [[0] * 6, [0, 1, 2, 3, 4, 5], [4, 5, 0, 0, 0, 0]])


def test_pieces_lie_a_pitch_apart(workspace: Workspace) -> None:
    """Channels of latents, (2, 2) frames of 3 values, beside 2 others each."""
    source = workspace.upload("source", np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    target = workspace.upload("target", np.full((3, 2, 5), -1, np.float32))
    target.copy_pieces(source, 4, offset=2 * 5 * 4, pitch=5 * 4)
    got = target.download()
    np.testing.assert_array_equal(got[1:, :, :3], np.arange(12).reshape(2, 2, 3))
    assert (got[0] == -1).all()
    assert (got[:, :, 3:] == -1).all()


def test_a_view_is_an_array_of_its_own_to_others(workspace: Workspace) -> None:
    whole = workspace.array("a", (4, 64))
    view = whole.view((2, 64), offset=512)
    assert view == whole.view((2, 64), offset=512) != whole.view((2, 64))
    assert view.__cuda_array_interface__ == {
        "shape": (2, 64), "typestr": "<f4", "data": (whole.address + 512, False), "strides": None, "version": 3,
        "stream": workspace.stream,
    }  # fmt: skip
    assert isinstance(view.owner, DeviceArray)
    assert view.nbytes == 512


def test_arrays_in_a_block_are_aligned() -> None:
    arrays = {"a": np.zeros(1), "b": np.zeros((ALIGNMENT, 1), np.uint8), "c": np.zeros(ALIGNMENT + 1, np.uint8)}
    assert offsets(arrays) == ({"a": 0, "b": ALIGNMENT, "c": 2 * ALIGNMENT}, 4 * ALIGNMENT)
