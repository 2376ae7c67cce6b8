"""Arrays in device memory, on every backend with a GPU, through the doubles. ONNX Runtime's bits are the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan

from telecine.backends.cuda import dlpack
from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.session import DeviceSession
from telecine.backends.cuda.stream import Stream
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.backends.onnxruntime.opening import open_session as open_onnxruntime
from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle
from telecine.errors import BackendError

pytest.importorskip("onnxruntime")

Open = Callable[..., DeviceSession]


def ids(batch: int = 1, length: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (batch, length))


# A backend, and whether it captures CUDA graphs.
BACKENDS = [("tensorrt", False), ("tensorrt", True), ("onnxruntime", False), ("onnxruntime", True)]


@pytest.fixture(params=BACKENDS, ids=lambda each: f"{each[0]}{'-graphs' if each[1] else ''}")
def open_session(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path, gpu: CudaDouble,
    tensorrt: Callable[..., Any], onnxruntime_gpu: Callable[..., Any],
) -> Open:  # fmt: skip
    """`open_session()`: the text encoder on the doubles."""
    backend, graphs = request.param
    bundle = Bundle.open(tiny_bundle)

    def open_(device: str = "cuda", stream: int | None = None) -> Any:
        if backend == "tensorrt":
            tensorrt()
            write_plan(bundle, "text_encoder", engines=tmp_path)
            engines = TensorRtBackend(bundle, device=device, engines=tmp_path, cuda_graphs=graphs)
            session = engines.load("text_encoder", "main")
            if stream is None:
                return session
            with session:
                return TensorRtSession(session._graph, session._engine, stream=stream, cuda_graphs=graphs)
        onnxruntime_gpu()
        graph, options = bundle.graph("text_encoder"), OnnxRuntimeOptions()
        path = bundle.path(graph.file)
        return open_onnxruntime(graph, path, device=device, options=options, stream=stream, cuda_graphs=graphs)

    return open_


@pytest.fixture
def device(gpu: CudaDouble) -> Device:
    return Device.open("cuda:0")


@pytest.fixture
def expected(tiny_bundle: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What ONNX Runtime's CPU provider makes of token ids, on the graph that the doubles run."""
    import onnxruntime

    bundle = Bundle.open(tiny_bundle)
    path = bundle.path(bundle.graph("text_encoder").file)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda tokens: session.run(None, {"input_ids": tokens})[0]


def seen_as(array: DeviceArray, kind: str) -> Any:
    """A device array as another library's, which offers one of the two interfaces."""
    if kind == "both":
        return array
    if kind == "interface":
        return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)
    return SimpleNamespace(__dlpack__=array.__dlpack__, __dlpack_device__=array.__dlpack_device__)


def later(device: Device, array: DeviceArray, content: np.ndarray) -> None:
    """Fill an array on its stream, without waiting."""
    kind = device.cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
    device.cuda.call("cudaMemcpyAsync", array.address, content.ctypes.data, array.nbytes, kind, array.stream)


@pytest.mark.parametrize("kind", ["both", "dlpack", "interface"])
def test_they_are_used_in_place(open_session: Open, device: Device, gpu: CudaDouble, expected: Any, kind: str) -> None:
    with open_session() as session:
        stream = session.stream
        with (
            DeviceArray(device, (1, 8), np.int64, stream=stream) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=stream) as out,
        ):
            tokens.upload(ids())
            session.bind("input_ids", seen_as(tokens, kind))
            session.bind("prompt_embeds", seen_as(out, kind))
            gpu.calls.clear()
            session.enqueue()
            assert "cudaMemcpyAsync" not in gpu.calls
            assert "cudaEventSynchronize" in gpu.calls  # of inputs' staging, which has nothing to wait for
            assert not gpu.idle()  # the host did not wait
            np.testing.assert_array_equal(out.download(), expected(ids()))
            session.unbind()


def test_owners_streams_are_kept_in_order(open_session: Open, device: Device, expected: Any) -> None:
    """Work of three streams that know nothing of each other: only what the session orders comes in order."""
    with open_session() as session:
        mine, theirs = Stream(device), Stream(device)
        with (
            DeviceArray(device, (1, 8), np.int64, stream=mine.handle) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=theirs.handle) as out,
        ):
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            for seed in range(3):
                later(device, tokens, ids(seed=seed))  # the host does not wait for it
                session.enqueue()
                np.testing.assert_array_equal(out.download(), expected(ids(seed=seed)))
            session.unbind()
        mine.close()
        theirs.close()


def test_the_callers_stream(open_session: Open, device: Device, gpu: CudaDouble, expected: Any) -> None:
    with open_session() as session:
        streams = [Stream(device), Stream(device)]
        with (
            DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) as out,
        ):
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            for seed, stream in enumerate([*streams, *streams]):
                tokens.upload(ids(seed=seed))
                session.enqueue(stream.handle)
                np.testing.assert_array_equal(out.download(), expected(ids(seed=seed)))
            session.unbind()
        for stream in streams:
            stream.close()


def test_work_comes_in_its_place_on_the_callers_stream(open_session: Open, device: Device, expected: Any) -> None:
    """Arrays that name no stream: what the caller gives their own before and after is ordered with the call."""
    with open_session() as session:
        mine = Stream(device)
        with (
            DeviceArray(device, (1, 8), np.int64, stream=mine.handle) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=mine.handle) as out,
        ):
            for name, array in (("input_ids", tokens), ("prompt_embeds", out)):
                silent = array.__cuda_array_interface__ | {"stream": None}
                session.bind(name, SimpleNamespace(__cuda_array_interface__=silent))
            for seed in range(3):
                later(device, tokens, ids(seed=seed))
                session.enqueue(mine.handle)
                np.testing.assert_array_equal(out.download(), expected(ids(seed=seed)))
            session.unbind()
        mine.close()


def test_a_session_on_the_callers_stream_leaves_it(open_session: Open, device: Device, expected: Any) -> None:
    """Made with it, and a clone too: all work is there, with nothing to order."""
    mine = Stream(device)
    with open_session(stream=mine.handle) as session, session.clone() as clone:
        for each in (session, clone):
            assert each.stream == mine.handle
            np.testing.assert_array_equal(each.run({"input_ids": ids()})["prompt_embeds"], expected(ids()))
    mine.synchronize()
    mine.close()


def test_steps_hand_over_without_the_host(open_session: Open, device: Device, gpu: CudaDouble, expected: Any) -> None:
    """What a loop on the device does: one's output is bound as another's, rebinding each time."""
    with open_session() as session, DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens:
        outs = [DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) for _ in range(2)]
        tokens.upload(ids())
        session.bind("input_ids", tokens)
        for step in range(6):
            session.bind("prompt_embeds", seen_as(outs[step % 2], "dlpack"))
            session.enqueue()
            if step == 1:
                gpu.calls.clear()  # the first two make room, and ONNX Runtime captures them
        assert not {"cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMalloc"} & set(gpu.calls)
        assert not gpu.idle()
        for out in outs:
            np.testing.assert_array_equal(out.download(), expected(ids()))
        session.unbind()
        for out in outs:
            out.close()


def test_host_inputs_may_be_rewritten_while_the_device_works(
    open_session: Open, device: Device, gpu: CudaDouble, expected: Any
) -> None:
    with open_session() as session:
        outs = [DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) for _ in range(3)]
        tokens = ids()
        session.bind("input_ids", tokens)
        for seed, out in enumerate(outs):
            tokens[:] = ids(seed=seed)
            session.bind("prompt_embeds", out)
            session.enqueue()
        assert not gpu.idle()
        for seed, out in enumerate(outs):
            np.testing.assert_array_equal(out.download(), expected(ids(seed=seed)))
        session.unbind()
        for out in outs:
            out.close()


def test_memory_grows_once_the_device_is_done_with_it(
    open_session: Open, device: Device, gpu: CudaDouble, expected: Any
) -> None:
    with open_session() as session:
        lengths = (8, 20, 40)
        outs = [DeviceArray(device, (1, length, 32), np.float32, stream=session.stream) for length in lengths]
        for length, out in zip(lengths, outs, strict=True):
            session.bind("input_ids", ids(length=length))
            session.bind("prompt_embeds", out)
            session.enqueue()
            assert not gpu.idle()
        for length, out in zip(lengths, outs, strict=True):
            np.testing.assert_array_equal(out.download(), expected(ids(length=length)))
        session.unbind()
        for out in outs:
            out.close()


def test_one_stream_after_another(open_session: Open, device: Device, gpu: CudaDouble, expected: Any) -> None:
    """Arrays that name no stream: nobody but the session knows that its calls come one after another."""
    with open_session() as session:
        streams = [Stream(device), Stream(device)]
        with (
            DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) as out,
        ):
            tokens.upload(ids())
            for name, array in (("input_ids", tokens), ("prompt_embeds", out)):
                silent = array.__cuda_array_interface__ | {"stream": None}
                session.bind(name, SimpleNamespace(__cuda_array_interface__=silent))
            for stream in (*streams, streams[0]):
                session.enqueue(stream.handle)
            assert not gpu.idle()
            streams[0].synchronize()
            np.testing.assert_array_equal(out.download(), expected(ids()))
            session.unbind()
        for stream in streams:
            stream.close()


def test_host_and_device_arrays_together(open_session: Open, device: Device, expected: Any) -> None:
    with open_session() as session:
        out = np.empty((1, 8, 32), np.float32)
        with DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens:
            tokens.upload(ids())
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            session.enqueue()
            np.testing.assert_array_equal(out, expected(ids()))
            session.bind("input_ids", ids(seed=1))
            session.enqueue()
            np.testing.assert_array_equal(out, expected(ids(seed=1)))


def test_what_cannot_be_bound(open_session: Open, device: Device) -> None:
    with open_session() as session, DeviceArray(device, (1, 64), np.int64, stream=session.stream) as tokens:
        base = tokens.__cuda_array_interface__
        for change, problem in [
            ({"typestr": "<i4"}, "input_ids in device memory is int32"),
            ({"strides": (512, 16), "shape": (1, 8)}, "input_ids in device memory is not contiguous"),
            ({"data": (tokens.address + 8, False), "shape": (1, 8)}, "8 bytes off the alignment"),
        ]:
            with pytest.raises(BackendError, match=problem):
                session.bind("input_ids", SimpleNamespace(__cuda_array_interface__=base | change))
        read_only = {"typestr": "<f4", "shape": (1, 4, 32), "data": (tokens.address, True)}
        with pytest.raises(BackendError, match="prompt_embeds in device memory is read-only, and an output"):
            session.bind("prompt_embeds", SimpleNamespace(__cuda_array_interface__=base | read_only))
        with pytest.raises(BackendError, match="no input or output is called ids"):
            session.bind("ids", tokens)


def test_dlpack_arrays_are_given_back_once_the_work_is_done(
    open_session: Open, device: Device, gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    take = dlpack.take

    def counting(capsule: Any) -> dlpack.Imported:
        found = take(capsule)

        def release() -> None:
            given_back.append(gpu.idle())
            found.release()

        return dataclasses.replace(found, release=release)

    monkeypatch.setattr(dlpack, "take", counting)
    with open_session() as session, DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens:
        tokens.upload(ids())
        with DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) as out:
            session.bind("prompt_embeds", out)
            for _ in range(3):
                session.bind("input_ids", seen_as(tokens, "dlpack"))
                session.enqueue()
            assert given_back == []  # nothing is done yet
            session.unbind()
            assert given_back == [True] * 3
