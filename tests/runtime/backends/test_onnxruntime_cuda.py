"""ONNX Runtime on a GPU, through the doubles, which hold to its rules: what it is told, host arrays, its life."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t

import telecine
from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.onnxruntime.cuda_network import GRAPHS_KEPT
from telecine.backends.onnxruntime.cuda_session import OnnxRuntimeCudaSession
from telecine.backends.onnxruntime.opening import open_session
from telecine.backends.onnxruntime.providers import CPU, CUDA, TENSORRT
from telecine.bundle import Bundle
from telecine.errors import BackendError
from telecine.initializers import read_initializers

pytest.importorskip("onnxruntime")

Open = Callable[..., OnnxRuntimeCudaSession]


def ids(batch: int = 1, length: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (batch, length))


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def open_cuda(bundle: Bundle, onnxruntime_gpu: Callable[..., Any]) -> Open:
    """`open_cuda(device=..., cuda_graphs=..., double={...}, **options)`: the text encoder."""

    def open_(
        *, device: str = "cuda", cuda_graphs: bool = False, precision: str = "fp32", double: Any = None, **options: Any
    ) -> Any:
        onnxruntime_gpu(**(double or {}))
        graph = bundle.graph("text_encoder")
        return open_session(
            graph, bundle.path(graph.file), device=device, options=OnnxRuntimeOptions(**options), precision=precision,
            cuda_graphs=cuda_graphs,
        )  # fmt: skip

    return open_


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What ONNX Runtime's CPU provider makes of token ids, on the graph that the double runs."""
    import onnxruntime

    bundle = Bundle.open(tiny_bundle)
    session = onnxruntime.InferenceSession(bundle.path(bundle.graph("text_encoder").file), providers=[CPU])
    return lambda tokens: session.run(None, {"input_ids": tokens})[0]


def real(session: OnnxRuntimeCudaSession) -> Any:
    return session.network.loaded.session


class TestWhatItIsTold:
    def test_options_reach_the_provider(self, open_cuda: Open) -> None:
        with open_cuda(gpu_mem_limit=1 << 30) as session:
            assert real(session).options == {
                "device_id": "0",
                "user_compute_stream": str(session.stream),
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": "0",
                "enable_cuda_graph": "0",
                "gpu_mem_limit": str(1 << 30),
            }
            assert session.batch_pays
        more = {CUDA: {"cudnn_conv_algo_search": "DEFAULT"}}
        with open_cuda(use_tf32=True, cudnn_conv_algo_search="EXHAUSTIVE", provider_options=more) as session:
            assert real(session).options["use_tf32"] == "1"
            assert real(session).options["cudnn_conv_algo_search"] == "DEFAULT"

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_tensorrts_provider_gets_the_precision_and_the_others_their_device(
        self, open_cuda: Open, precision: str
    ) -> None:
        more = {TENSORRT: {"trt_engine_cache_enable": True}}
        with open_cuda(providers=(TENSORRT, CUDA, CPU), provider_options=more, precision=precision) as session:
            (_, tensorrt), (_, cuda), (_, cpu) = real(session)._providers
            assert tensorrt == {
                "device_id": "0",
                "user_compute_stream": str(session.stream),
                "trt_fp16_enable": str(int(precision == "fp16")),
                "trt_bf16_enable": str(int(precision == "bf16")),
                "trt_engine_cache_enable": "1",
            }
            assert cuda["user_compute_stream"] == tensorrt["user_compute_stream"]
            assert cpu == {}

    def test_a_gpu_is_named_by_its_number(self, open_cuda: Open, gpu: CudaDouble, expected: Any) -> None:
        gpu.capabilities = ("8.9", "9.0")
        with open_cuda(device="cuda:1") as session:
            np.testing.assert_array_equal(session.run({"input_ids": ids()})["prompt_embeds"], expected(ids()))
            assert {each.device for each in gpu.memory.live("device")} == {1}
        with pytest.raises(BackendError, match="device cuda:2; expected one of 2"):
            open_cuda(device="cuda:2")

    def test_without_cuda_bindings_the_extra_is_named(self, open_cuda: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
        with pytest.raises(BackendError, match="cuda-bindings cannot be imported.*onnxruntime-gpu"):
            open_cuda()

    def test_the_cpu_s_own_graph_is_the_cpu_s_alone(self, open_cuda: Open, tiny_bundle: Path) -> None:
        """A bundle has graphs beside for ONNX Runtime's CPU provider, with operators that it fuses."""
        with telecine.load(tiny_bundle, backend="onnxruntime") as pipe:
            assert isinstance(pipe._models.session("transformer"), OnnxRuntimeSession)
        open_cuda().close()
        with telecine.load(tiny_bundle, backend="onnxruntime", device="cuda") as pipe:
            session = pipe._models.session("transformer")
            assert isinstance(session, OnnxRuntimeCudaSession)
            assert session.network.path.name == "main.onnx"

    @pytest.mark.parametrize(
        ("operators", "told"),
        [(["Shape", "Gather", "Concat"], []), (["Attention", "Shape", "Attention", "Conv"], ["2 Attention, 1 Conv"])],
    )
    def test_heavy_work_on_the_host_is_told(
        self, open_cuda: Open, operators: list[str], told: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            open_cuda(double={"operators_on_host": operators}).close()
        assert len(caplog.records) == len(told)
        assert all(words in record.getMessage() for words, record in zip(told, caplog.records, strict=True))


class TestHostArrays:
    def test_sizes_one_after_another(self, open_cuda: Open, expected: Any) -> None:
        with open_cuda() as session:
            for batch, length in ((1, 8), (3, 17), (1, 2), (3, 17)):
                tokens = ids(batch, length)
                np.testing.assert_array_equal(session.run({"input_ids": tokens})["prompt_embeds"], expected(tokens))

    def test_bound_buffers_are_read_and_written_at_each_call(
        self, open_cuda: Open, gpu: CudaDouble, expected: Any
    ) -> None:
        with open_cuda() as session:
            tokens, out = ids(), np.empty((1, 8, 32), np.float32)
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            for seed in range(3):
                gpu.calls.clear()
                tokens[:] = ids(seed=seed)
                session.enqueue()
                np.testing.assert_array_equal(out, expected(ids(seed=seed)))
            assert not {"cudaMalloc", "cudaMallocHost", "cudaStreamSynchronize"} & set(gpu.calls)

    def test_what_onnx_runtime_reads_on_the_host_stays_there(
        self, open_cuda: Open, gpu: CudaDouble, expected: Any
    ) -> None:
        """Bound on the device, it would be copied once and never again; nor may it be captured."""
        with open_cuda(double={"inputs_on_host": ["input_ids"]}, cuda_graphs=True) as session:
            tokens, out = ids(), np.empty((1, 8, 32), np.float32)
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            for seed in range(3):
                tokens[:] = ids(seed=seed)
                session.enqueue()
                np.testing.assert_array_equal(out, expected(ids(seed=seed)))
            device = Device.open("cuda")
            with (
                DeviceArray(device, (1, 8), np.int64, stream=session.stream) as array,
                pytest.raises(BackendError, match="input_ids is in device memory; expected a NumPy array"),
            ):
                session.bind("input_ids", array)

    def test_enqueue_wants_all_bound_in_shapes_that_fit(self, open_cuda: Open) -> None:
        with open_cuda() as session:
            with pytest.raises(BackendError, match="input_ids, prompt_embeds not bound"):
                session.enqueue()
            session.bind("input_ids", ids())
            session.bind("prompt_embeds", np.empty((1, 9, 32), np.float32))
            with pytest.raises(BackendError, match=r"prompt_embeds has shape \(1, 9, 32\); expected \(1, 8, 32\)"):
                session.enqueue()


class TestGraphs:
    def test_one_for_each_size_and_place(self, open_cuda: Open, gpu: CudaDouble, expected: Any) -> None:
        with open_cuda(cuda_graphs=True) as session:
            for length in (8, 5, 8, 5, 8):
                tokens = ids(length=length, seed=length)
                np.testing.assert_array_equal(session.run({"input_ids": tokens})["prompt_embeds"], expected(tokens))
            assert len(real(session).graphs) == 2
            assert gpu.calls.count("cudaGraphLaunch") == 5

    def test_what_is_kept_has_an_end(self, open_cuda: Open, expected: Any) -> None:
        with open_cuda(cuda_graphs=True) as session:
            for length in range(1, GRAPHS_KEPT + 4):
                tokens = ids(length=length)
                np.testing.assert_array_equal(session.run({"input_ids": tokens})["prompt_embeds"], expected(tokens))
            assert len(real(session).graphs) == GRAPHS_KEPT

    def test_a_graph_that_cuda_does_not_run_alone_is_run_without(
        self, open_cuda: Open, expected: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING), open_cuda(cuda_graphs=True, double={"refuses_graphs": True}) as session:
            np.testing.assert_array_equal(session.run({"input_ids": ids()})["prompt_embeds"], expected(ids()))
        (record,) = caplog.records
        assert "no CUDA graphs of text_encoder: ONNX Runtime failed loading" in record.getMessage()

    def test_other_faults_are_not_taken_for_that(self, open_cuda: Open, gpu: CudaDouble) -> None:
        gpu.capacity = 100
        with pytest.raises(BackendError, match="out of memory: ONNX Runtime, loading"):
            open_cuda(cuda_graphs=True)

    def test_tensorrts_provider_captures_none(self, open_cuda: Open) -> None:
        with pytest.raises(BackendError, match=f"cuda_graphs=True on {TENSORRT}; expected {CUDA} first"):
            open_cuda(cuda_graphs=True, providers=(TENSORRT, CUDA, CPU))


class TestLife:
    def test_everything_is_freed(self, open_cuda: Open, gpu: CudaDouble, expected: Any) -> None:
        session = open_cuda()
        clone = session.clone()
        session.run({"input_ids": ids()})
        session.close()
        session.close()
        assert session.closed
        for use in (session.enqueue, session.clone, lambda: session.run({"input_ids": ids()}), lambda: session.stream):
            with pytest.raises(BackendError, match="this session is closed"):
                use()
        session.unbind()
        np.testing.assert_array_equal(clone.run({"input_ids": ids()})["prompt_embeds"], expected(ids()))
        clone.close()
        assert set(gpu.leftovers().values()) == {0}

    def test_close_waits_for_pending_work(self, open_cuda: Open, gpu: CudaDouble) -> None:
        session = open_cuda()
        device = Device.open("cuda:0")
        tokens = DeviceArray(device, (1, 8), np.int64, stream=session.stream)
        out = DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream)
        tokens.upload(ids())
        session.bind("input_ids", tokens)
        session.bind("prompt_embeds", out)
        session.enqueue()
        assert not gpu.idle()
        session.close()  # a violation of the double otherwise: ONNX Runtime's memory freed under the launch
        tokens.close()
        out.close()

    @pytest.mark.parametrize("function", ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMalloc"])
    def test_a_session_that_cannot_be_made_leaves_nothing(
        self, open_cuda: Open, gpu: CudaDouble, function: str
    ) -> None:
        gpu.failures[function] = cudaError_t.cudaErrorMemoryAllocation
        with pytest.raises(BackendError, match="out of memory"):
            open_cuda()

    def test_a_run_that_fails_is_told(self, open_cuda: Open, monkeypatch: pytest.MonkeyPatch, expected: Any) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

        with open_cuda() as session:
            with monkeypatch.context() as patch:
                patch.setattr(real(session), "_run", fail)
                with pytest.raises(BackendError, match="out of memory: ONNX Runtime, running"):
                    session.run({"input_ids": ids()})
            np.testing.assert_array_equal(session.run({"input_ids": ids()})["prompt_embeds"], expected(ids()))

    def test_clones_run_in_threads(self, open_cuda: Open, expected: Any) -> None:
        """On the stream that they share."""
        with open_cuda() as session, session.clone() as other:
            wanted = [expected(ids(length=length)) for length in (5, 9)]
            wrong: list[int] = []

            def work(number: int) -> None:
                clone, tokens = (session, other)[number], ids(length=(5, 9)[number])
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


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_other_weights_act_from_the_next_call(open_cuda: Open, bundle: Bundle, cuda_graphs: bool) -> None:
    """On what is bound, in clones too, and while the old ones' work is pending."""
    path = bundle.path(bundle.graph("text_encoder").file)
    name = "encoder.final_layer_norm.weight"
    weights = {name: 2 * read_initializers(path)[name].read()}
    with open_cuda(cuda_graphs=cuda_graphs) as session, session.clone() as clone:
        device = Device.open("cuda")
        with DeviceArray(device, (1, 8, 32), np.float32, stream=session.stream) as out:
            for each in (session, clone):
                each.bind("input_ids", ids())
                each.bind("prompt_embeds", out)
                each.enqueue()
            before = out.download()
            for each in (session, clone):
                each.enqueue()
            session.replace(weights)
            for each in (clone, session):  # the second lets the old ones go
                each.enqueue()
            np.testing.assert_array_equal(out.download(), 2 * before)
            session.replace({})
            clone.enqueue()
            np.testing.assert_array_equal(out.download(), before)
            session.unbind()
            clone.unbind()
