"""The session contract on TensorRT's double: bindings, streams, sizes. ONNX Runtime's bits are the oracle."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t

from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle
from telecine.errors import BackendError, EngineError
from telecine.initializers import read_initializers
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


class TestCudaGraphs:
    """Captured launches of an execution context; `cuda/test_graph.py` has the rule of when."""

    def test_every_size_and_address_has_its_own(self, open_session: Open, gpu: CudaDouble, expected: Any) -> None:
        with open_session(cuda_graphs=True) as session:
            for length in (8, 8, 8, 12, 12, 8, 8):
                tokens = ids(length=length, seed=length)
                np.testing.assert_array_equal(session.run({"input_ids": tokens})["prompt_embeds"], expected(tokens))
            assert gpu.calls.count("cudaGraphInstantiate") == 3  # dropped with each change of shapes
            assert gpu.calls.count("cudaGraphLaunch") == 4

    def test_a_refit_drops_them(self, open_session: Open, bundle: Bundle, gpu: CudaDouble) -> None:
        name = "encoder.final_layer_norm.weight"
        path = bundle.path(bundle.graph("text_encoder").file)
        weights = {name: 2 * read_initializers(path)[name].read()}
        with open_session(refit=True, cuda_graphs=True) as session:
            before = [session.run({"input_ids": ids()})["prompt_embeds"] for _ in range(3)][-1]
            session.replace(weights)
            for _ in range(3):
                np.testing.assert_array_equal(session.run({"input_ids": ids()})["prompt_embeds"], 2 * before)
        assert gpu.calls.count("cudaGraphInstantiate") == 2

    def test_rtx_captures_by_itself(
        self, open_session: Open, gpu: CudaDouble, expected: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for graphs in (True, "auto"):
            with open_session(library="tensorrt_rtx", cuda_graphs=graphs) as session:
                for seed in range(4):
                    made = session.run({"input_ids": ids(seed=seed)})["prompt_embeds"]
                    np.testing.assert_array_equal(made, expected(ids(seed=seed)))
                strategy = session._context.config.cuda_graph_strategy.name
                assert strategy == ("WHOLE_GRAPH_CAPTURE" if graphs is True else "DISABLED")
        assert "cudaStreamBeginCapture" not in gpu.calls

    def test_streamed_weights_are_not_captured(self, open_session: Open, gpu: CudaDouble) -> None:
        with open_session(weight_streaming=True, cuda_graphs=True) as session:
            for _ in range(4):
                session.run({"input_ids": ids()})
        assert "cudaStreamBeginCapture" not in gpu.calls
