"""A double of onnxruntime-gpu's CUDA provider: the CPU provider on the memory and streams of the CUDA double.

`make_onnxruntime` gives a module with the real package's SessionOptions, RunOptions and OrtValue, and sessions that
hold to ONNX Runtime's rules, each named where it is checked. A broken one is kept in the CUDA double's `violations`.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real

from doubles.cuda_graphs import cudaStreamCaptureMode
from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# CUDAExecutionProviderInfo::FromProviderOptions: an option that it does not know fails the session.
OPTIONS = {
    CUDA: {
        "device_id", "user_compute_stream", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search",
        "use_tf32", "enable_cuda_graph",
    },
    TENSORRT: {"device_id", "user_compute_stream", "trt_fp16_enable", "trt_bf16_enable", "trt_engine_cache_enable"},
    CPU: set(),
}  # fmt: skip
ARENA = 1 << 12
RUNS_BEFORE_CAPTURE = 2  # CUDAExecutionProvider, min_num_runs_before_cuda_graph_capture_
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class InferenceSession:
    """`cuda`, `inputs_on_host`, `operators_on_host` and `refuses_graphs` are set for each module that is made."""

    cuda: CudaDouble
    inputs_on_host: set[str]
    operators_on_host: Sequence[str]
    refuses_graphs: bool

    def __init__(
        self, path_or_bytes: Any, sess_options: Any = None, providers: Any = None, provider_options: Any = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self._providers = [each if isinstance(each, tuple) else (each, {}) for each in providers]
        for name, options in self._providers:
            unknown = set(options) - OPTIONS[name]
            if unknown or not all(isinstance(value, str) for value in options.values()):
                raise RuntimeError(f"Unknown provider option: {unknown or options}")
        self.options = dict(self._providers)[self._providers[0][0]]
        self.device, self.stream = int(self.options["device_id"]), int(self.options["user_compute_stream"])
        self.captures = self.options.get("enable_cuda_graph") == "1"
        if self.captures and self.refuses_graphs:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as all compute graph nodes "
                "have not been partitioned to the CUDAExecutionProvider"
            )
        self._session = real.InferenceSession(path_or_bytes, sess_options, providers=[CPU])
        # Its arena: nobody else's work may be there, and it is freed with the session.
        self.cuda.cudaSetDevice(self.device)
        status, self.arena = self.cuda.cudaMalloc(ARENA)
        if status:
            raise RuntimeError(f"CUDA failure {int(status)}: out of memory ; GPU={self.device}")
        self.graphs: dict[tuple[int, int], Any] = {}  # by thread (PerThreadContext) and annotation id
        self.runs: dict[tuple[int, int], int] = {}
        weakref.finalize(self, _free, self.cuda, self.arena, self.stream, self.graphs)
        self._running = threading.Lock()

    def get_providers(self) -> Sequence[str]:
        return [name for name, _ in self._providers]

    def get_inputs(self) -> Sequence[Any]:
        return self._session.get_inputs()

    def get_outputs(self) -> Sequence[Any]:
        return self._session.get_outputs()

    def get_session_options(self) -> Any:
        return self._session.get_session_options()

    def get_input_memory_infos(self) -> Sequence[Any]:
        return [
            SimpleNamespace(name="Cpu" if node.name in self.inputs_on_host else "Cuda") for node in self.get_inputs()
        ]

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        """Empty, as the real one's, unless the session's settings ask for it."""
        try:
            self.get_session_options().get_session_config_entry("session.record_ep_graph_assignment_info")
        except RuntimeError:
            return []
        nodes = [SimpleNamespace(op_type=operator) for operator in self.operators_on_host]
        return [SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes)]

    def io_binding(self) -> IOBinding:
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        if iobinding._session is not self:
            raise ValueError("IOBinding must be used with the session that created it.")
        # One stream of the caller's, and one captured graph at a time: runs of two threads would mix there.
        if not self._running.acquire(blocking=False):
            self.cuda.violate("two threads run one session that has a stream of the caller's")
            return
        try:
            self._run(iobinding, run_options)
        finally:
            self._running.release()

    def _run(self, binding: IOBinding, run_options: Any) -> None:
        key = (threading.get_ident(), int(_entry(run_options, "gpu_graph_id", "0")))
        if not self.captures or key[1] == -1:
            self._submit(binding)
        else:
            if key not in self.graphs:
                self._capture(key, binding)
            self.cuda.cudaGraphLaunch(self.graphs[key], self.stream)  # of what was bound when it was captured
        if _entry(run_options, "disable_synchronize_execution_providers", "0") != "1":
            self.cuda.cudaStreamSynchronize(self.stream)

    def _capture(self, key: tuple[int, int], binding: IOBinding) -> None:
        """InferenceSession::Run runs until the graph is captured; CUDAGraphManager::CaptureBegin, CaptureEnd."""
        for _ in range(RUNS_BEFORE_CAPTURE):
            self._submit(binding)
        self.cuda.cudaStreamSynchronize(self.stream)
        self.cuda.cudaStreamBeginCapture(self.stream, cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
        self._submit(binding)
        status, graph = self.cuda.cudaStreamEndCapture(self.stream)
        if status:
            raise RuntimeError(f"CUDA failure {int(status)}: operation failed due to a previous error during capture")
        self.graphs[key] = self.cuda.cudaGraphInstantiate(graph, 0)[1]
        self.cuda.cudaGraphDestroy(graph)

    def _submit(self, binding: IOBinding) -> None:
        missing = [node.name for node in (*self.get_inputs(), *self.get_outputs()) if node.name not in binding.bound]
        if missing:
            raise RuntimeError(f"Missing Input: {missing}")
        session, cuda, arena = self._session, self.cuda, self.arena
        inputs = {node.name: binding.bound[node.name] for node in self.get_inputs()}
        outputs = [binding.bound[node.name] for node in self.get_outputs()]
        # What the graph reads on the host it reads now; on the device, when the stream comes there.
        now = {name: place.array().copy() for name, place in inputs.items() if place.kind == "cpu"}

        def run() -> None:
            view(arena, ARENA).fill(0xAB)
            feeds = {name: now[name] if name in now else place.array().copy() for name, place in inputs.items()}
            for place, made in zip(outputs, session.run(None, feeds), strict=True):
                if made.shape != place.shape:
                    raise RuntimeError(f"Output shape {made.shape} into a buffer of {place.shape}")
                cuda.write(place.address, np.frombuffer(made.tobytes(), np.uint8))

        reads = [place.region for place in inputs.values() if place.kind == "cuda"]
        cuda.submit(self.stream, run, reads, [(arena, ARENA), *(place.region for place in outputs)])


class Place:
    def __init__(self, kind: str, dtype: Any, shape: Sequence[int], address: int) -> None:
        self.kind, self.dtype, self.shape, self.address = kind, np.dtype(dtype), tuple(shape), address

    @property
    def region(self) -> tuple[int, int]:
        return self.address, math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        return view(*self.region).view(self.dtype).reshape(self.shape)


class IOBinding:
    """Addresses alone: what is bound must be kept by others."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self.bound: dict[str, Place] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Where the graph wants an input elsewhere, IOBinding::BindInput copies what it holds now."""
        place = Place(device_type, element_type, shape, buffer_ptr)
        self._check(name, self._session.get_inputs(), place, device_id)
        wanted = "cpu" if name in self._session.inputs_on_host else "cuda"
        if device_type != wanted:
            self._session.cuda.violate(f"{name} is bound in {device_type} memory and wanted in {wanted}: it is copied")
        self.bound[name] = place

    def bind_output(
        self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
        shape: Sequence[int] | None = None, buffer_ptr: int | None = None,
    ) -> None:  # fmt: skip
        assert shape is not None
        assert buffer_ptr is not None
        place = Place(device_type, element_type, shape, buffer_ptr)
        self._check(name, self._session.get_outputs(), place, device_id)
        if device_type != "cuda":
            self._session.cuda.violate(f"{name} is bound in {device_type} memory: every run copies it and waits")
        self.bound[name] = place

    def _check(self, name: str, nodes: Sequence[Any], place: Place, device_id: int) -> None:
        node = next((node for node in nodes if node.name == name), None)
        if node is None or TYPES[node.type] != place.dtype or len(node.shape) != len(place.shape):
            raise RuntimeError(f"Invalid argument: {name} of {place.dtype} {place.shape}")
        if place.kind == "cuda":
            block = self._session.cuda.memory.find(*place.region)
            if device_id != self._session.device or block is None or block.device != device_id:
                self._session.cuda.violate(f"{name} is not in the memory of device {device_id}")


def _entry(options: Any, key: str, default: str) -> str:
    try:
        return str(options.get_run_config_entry(key)) or default
    except (RuntimeError, AttributeError):  # no such entry, or no options
        return default


def _free(cuda: CudaDouble, arena: int, stream: int, graphs: dict[tuple[int, int], Any]) -> None:
    if stream not in cuda.streams:
        cuda.violate("a session of ONNX Runtime outlives its stream")
    for graph in graphs.values():
        cuda.cudaGraphExecDestroy(graph)
    cuda.cudaFree(arena)


def make_onnxruntime(
    cuda: CudaDouble, *, inputs_on_host: Sequence[str] = (), operators_on_host: Sequence[str] = (),
    refuses_graphs: bool = False,
) -> ModuleType:  # fmt: skip
    """A module that stands in for onnxruntime-gpu, on a CUDA double. `made` has the sessions that live."""
    module = ModuleType("onnxruntime")
    made: weakref.WeakSet[InferenceSession] = weakref.WeakSet()

    def create(path_or_bytes: Any, *arguments: Any, providers: Any = None, **named: Any) -> Any:
        names = [each if isinstance(each, str) else each[0] for each in providers]
        if names == [CPU]:
            return real.InferenceSession(path_or_bytes, *arguments, providers=providers, **named)
        session = kind(path_or_bytes, *arguments, providers=providers, **named)
        made.add(session)
        return session

    members = {"cuda": cuda, "inputs_on_host": set(inputs_on_host), "refuses_graphs": refuses_graphs}
    members["operators_on_host"] = operators_on_host
    kind = type("InferenceSession", (InferenceSession,), members)
    for name in ("SessionOptions", "RunOptions", "OrtValue", "capi", "__version__"):
        setattr(module, name, getattr(real, name))
    module.InferenceSession = create  # type: ignore[attr-defined]
    module.get_available_providers = lambda: [TENSORRT, CUDA, CPU]  # type: ignore[attr-defined]
    module.preload_dlls = lambda: None  # type: ignore[attr-defined]
    module.made = made  # type: ignore[attr-defined]
    return module
