"""The session contract on TensorRT's double: bindings, streams, sizes. ONNX Runtime's bits are the oracle."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t

from telecine.backends.cuda import dlpack
from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.stream import Stream
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle
from telecine.errors import BackendError, EngineError
from telecine.manifest import TensorSpec

pytest.importorskip("onnxruntime")

Open = Callable[..., TensorRtSession]


def ids(batch: int = 1, length: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (batch, length))


@pytest.fixture
def expected(bundle: Bundle) -> Callable[[np.ndarray], np.ndarray]:
    """What ONNX Runtime makes of token ids."""
    graph = bundle.graph("text_encoder")
    session = OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=OnnxRuntimeOptions())
    return lambda tokens: session.run({"input_ids": tokens})["prompt_embeds"]


class TestHostArrays:
    def test_sizes_one_after_another(self, open_session: Open, expected: Any) -> None:
        with open_session() as session:
            for batch, length in ((1, 8), (3, 17), (1, 2), (3, 17)):
                tokens = ids(batch, length)
                np.testing.assert_array_equal(session.run({"input_ids": tokens})["prompt_embeds"], expected(tokens))

    def test_bound_buffers_are_read_and_written_at_each_call(self, open_session: Open, expected: Any) -> None:
        with open_session() as session:
            tokens, out = ids(), np.empty((1, 8, 32), np.float32)
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            for seed in range(3):
                tokens[:] = ids(seed=seed)
                session.enqueue()
                np.testing.assert_array_equal(out, expected(ids(seed=seed)))

    def test_nothing_is_told_or_allocated_twice(
        self, open_session: Open, gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_session() as session:
            told: list[str] = []
            for name in ("set_input_shape", "set_tensor_address", "set_device_memory"):
                real = getattr(session._context, name)
                monkeypatch.setattr(
                    session._context, name, lambda *a, name=name, real=real: told.append(name) or real(*a)
                )
            session.run({"input_ids": ids()})
            assert sorted(set(told)) == ["set_device_memory", "set_input_shape", "set_tensor_address"]
            told.clear()
            gpu.calls.clear()
            session.run({"input_ids": ids(seed=1)})
            assert told == []
            assert not [name for name in gpu.calls if "Malloc" in name or "Free" in name]

    def test_enqueue_wants_all_bound_in_shapes_that_fit(self, open_session: Open) -> None:
        with open_session() as session:
            with pytest.raises(BackendError, match="input_ids, prompt_embeds not bound"):
                session.enqueue()
            session.bind("input_ids", ids())
            session.bind("prompt_embeds", np.empty((1, 9, 32), np.float32))
            with pytest.raises(BackendError, match=r"prompt_embeds has shape \(1, 9, 32\); expected \(1, 8, 32\)"):
                session.enqueue()
            session.unbind()
            with pytest.raises(BackendError, match="not bound"):
                session.enqueue()

    @pytest.mark.parametrize(
        ("name", "buffer", "problem"),
        [
            ("ids", ids(), "no input or output is called ids"),
            ("input_ids", ids().astype(np.int32), "input_ids is int32"),
            ("input_ids", ids(2, 8).T, "input_ids is not contiguous"),
        ],
    )
    def test_bind_refuses_other_arrays(self, open_session: Open, name: str, buffer: Any, problem: str) -> None:
        with open_session() as session, pytest.raises(BackendError, match=problem):
            session.bind(name, buffer)

    def test_arrays_are_cast_to_the_plans_dtype(self, open_session: Open, bundle: Bundle, expected: Any) -> None:
        """The plan has int32 ids and float16 embeddings; the graph's contract stays int64 and float32."""
        graph = bundle.graph("text_encoder")
        narrow = tuple(dataclasses.replace(spec, dtype="int32") for spec in graph.inputs)
        half = tuple(dataclasses.replace(spec, dtype="float16") for spec in graph.outputs)
        with open_session(inputs=narrow, outputs=half) as session:
            got = session.run({"input_ids": ids()})["prompt_embeds"]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected(ids()).astype(np.float16).astype(np.float32))

    def test_a_plan_of_a_type_that_numpy_lacks(self, open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_session() as session:
            wrong = TensorSpec(name="input_ids", dtype="bfloat16", shape=("batch", "text_length"))
            engine = session._engine
            with monkeypatch.context() as patch:
                patch.setattr(engine, "sidecar", dataclasses.replace(engine.sidecar, inputs=(wrong,)))
                with pytest.raises(
                    EngineError, match="input_ids of the engine is bfloat16; expected a type that NumPy"
                ):
                    TensorRtSession(session._graph, engine)


class TestSizes:
    def test_outside_of_every_profile(self, open_session: Open) -> None:
        with open_session(profiles=({"text_length": (4, 8, 16)}, {"text_length": (32, 64, 64)})) as session:
            session.run({"input_ids": ids(length=16)})
            session.run({"input_ids": ids(length=32)})
            words = (
                r"text_length of input_ids is 20, for which the engine has no profile; expected 4 to 16 or 32 to 64. "
                r"Run: telecine build BUNDLE --workload "
            )
            with pytest.raises(EngineError, match=words):
                session.run({"input_ids": ids(length=20)})
            session.run({"input_ids": ids(length=8)})  # and goes on

    def test_a_refused_shape_is_told(self, open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorRT itself refuses what the sidecar promised."""
        with open_session(profiles=({"text_length": (1, 4, 16)},)) as session:
            wide = ({"input_ids": SimpleNamespace(min=(1, 1), opt=(1, 4), max=(9, 99))},)
            sidecar = SimpleNamespace(profiles=wide)
            monkeypatch.setattr(session._engine, "sidecar", sidecar)
            with pytest.raises(
                BackendError, match=r"TensorRT failed setting the shape \(1, 50\) of input_ids: .*outside"
            ):
                session.run({"input_ids": ids(length=50)})

    def test_an_engine_that_makes_another_shape(self, open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_session() as session:
            monkeypatch.setattr(session._context, "get_tensor_shape", lambda name: (1, 8, 31))
            with pytest.raises(BackendError, match=r"makes prompt_embeds in shape \(1, 8, 31\)"):
                session.run({"input_ids": ids()})


class TestDeviceArrays:
    @pytest.fixture
    def device(self, open_session: Open) -> Device:
        return Device.open("cuda:0")

    @pytest.mark.parametrize("kind", ["both", "dlpack", "interface"])
    def test_they_are_used_in_place(
        self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any, kind: str
    ) -> None:
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

    def test_owners_streams_are_kept_in_order(self, open_session: Open, device: Device, expected: Any) -> None:
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

    def test_the_callers_stream(self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any) -> None:
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

    def test_steps_hand_over_without_the_host(
        self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any
    ) -> None:
        """What a loop on the device does: one's output is bound as another's, rebinding each time."""
        with open_session() as session, DeviceArray(device, (1, 8), np.int64, stream=session.stream) as tokens:
            outs = [DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) for _ in range(2)]
            tokens.upload(ids())
            session.bind("input_ids", tokens)
            for step in range(6):
                session.bind("prompt_embeds", seen_as(outs[step % 2], "dlpack"))
                session.enqueue()
                if step == 0:
                    gpu.calls.clear()  # the first makes room for the activations
            assert not {"cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMalloc"} & set(gpu.calls)
            assert not gpu.idle()
            for out in outs:
                np.testing.assert_array_equal(out.download(), expected(ids()))
            session.unbind()
            for out in outs:
                out.close()

    def test_host_inputs_may_be_rewritten_while_the_device_works(
        self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any
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
        self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any
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

    def test_one_stream_after_another(self, open_session: Open, device: Device, gpu: CudaDouble, expected: Any) -> None:
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

    def test_host_and_device_arrays_together(self, open_session: Open, device: Device, expected: Any) -> None:
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

    def test_what_cannot_be_bound(self, open_session: Open, device: Device) -> None:
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
        self, open_session: Open, device: Device, gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch
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


class TestLife:
    def test_everything_is_freed(self, open_session: Open, gpu: CudaDouble) -> None:
        session = open_session()
        clone = session.clone()
        session.run({"input_ids": ids()})
        session.close()
        session.close()
        assert session.closed
        for use in (session.enqueue, session.clone, lambda: session.run({"input_ids": ids()})):
            with pytest.raises(BackendError, match="this session is closed"):
                use()
        session.unbind()
        clone.run({"input_ids": ids()})  # the engine lives on
        clone.close()
        assert set(gpu.leftovers().values()) == {0}

    def test_close_waits_for_pending_work(self, open_session: Open, gpu: CudaDouble) -> None:
        session = open_session()
        device = Device.open("cuda:0")
        tokens = DeviceArray(device, (1, 8), np.int64, stream=session.stream)
        out = DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream)
        tokens.upload(ids())
        session.bind("input_ids", tokens)
        session.bind("prompt_embeds", out)
        session.enqueue()
        session.close()  # a violation of the double otherwise: activations freed under the launch
        tokens.close()
        out.close()

    @pytest.mark.parametrize("function", ["cudaMalloc", "cudaMallocHost"])
    def test_out_of_memory_says_so_and_leaves_a_session_that_works(
        self, open_session: Open, gpu: CudaDouble, expected: Any, function: str
    ) -> None:
        with open_session() as session:
            session.run({"input_ids": ids()})
            gpu.failures[function] = cudaError_t.cudaErrorMemoryAllocation
            with pytest.raises(BackendError, match=f"out of memory: CUDA, in {function}.*fewer frames"):
                session.run({"input_ids": ids(3, 40)})
            np.testing.assert_array_equal(session.run({"input_ids": ids(3, 40)})["prompt_embeds"], expected(ids(3, 40)))

    @pytest.mark.parametrize("function", ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaSetDevice"])
    def test_a_session_that_cannot_be_made_leaves_nothing(
        self, open_session: Open, gpu: CudaDouble, function: str
    ) -> None:
        gpu.failures[function] = cudaError_t.cudaErrorInvalidDevice
        with pytest.raises(BackendError, match=f"{function} failed: cudaErrorInvalidDevice"):
            open_session()

    def test_a_launch_that_fails_tells_tensorrts_reason(
        self, open_session: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_session() as session:
            for text, words in [
                ("CUDA error 700", "TensorRT failed running: CUDA error 700"),
                ("OutOfMemory", "out of memory: TensorRT, running"),
            ]:
                fail = lambda stream, text=text: session._engine._engine.fail(text)  # noqa: E731
                with monkeypatch.context() as patch:
                    patch.setattr(session._context, "execute_async_v3", fail)
                    with pytest.raises(BackendError, match=words):
                        session.run({"input_ids": ids()})
            session.run({"input_ids": ids()})

    @pytest.mark.parametrize("then", ["close", "a larger size"])
    def test_what_a_failed_launch_left_is_waited_for(
        self, open_session: Open, monkeypatch: pytest.MonkeyPatch, gpu: CudaDouble, then: str
    ) -> None:
        with open_session() as session:
            with monkeypatch.context() as patch:
                patch.setattr(session._context, "execute_async_v3", lambda stream: False)
                with pytest.raises(BackendError, match="failed running"):
                    session.run({"input_ids": ids()})
            assert not gpu.idle()  # its inputs are on their way
            if then == "a larger size":
                session.run({"input_ids": ids(3, 40)})

    def test_no_context(self, open_session: Open, monkeypatch: pytest.MonkeyPatch, gpu: CudaDouble) -> None:
        session = open_session()
        monkeypatch.setattr(session._engine._engine, "create_execution_context", lambda strategy: None)
        with pytest.raises(BackendError, match="TensorRT failed making an execution context: it gives no reason"):
            session.clone()
        session.close()

    def test_threads_with_clones(self, open_session: Open, expected: Any) -> None:
        with open_session() as session:
            wanted = [expected(ids(length=length)) for length in (5, 9)]
            wrong: list[int] = []

            def work(number: int) -> None:
                with session.clone() as clone:
                    tokens = ids(length=(5, 9)[number])
                    wrong.extend(
                        number
                        for _ in range(10)
                        if not np.array_equal(clone.run({"input_ids": tokens})["prompt_embeds"], wanted[number])
                    )

            threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []

    def test_weights_are_streamed_by_the_automatic_budget(self, open_session: Open) -> None:
        with open_session(weight_streaming=True) as session:
            engine = session._engine._engine
            assert engine.weight_streaming_budget_v2 == engine.get_weight_streaming_automatic_budget() > 0
            session.run({"input_ids": ids()})


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
