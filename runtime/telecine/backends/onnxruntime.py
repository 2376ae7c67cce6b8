"""Graphs on ONNX Runtime, bound through its IO binding: no copy between NumPy and the CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from telecine.backends.base import Buffer, Session, out_of_memory
from telecine.dtypes import STORAGE
from telecine.errors import BackendError
from telecine.initializers import check_weights, read_initializers
from telecine.manifest import Graph

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# What ONNX Runtime says, in its different layers, when an allocation fails.
OUT_OF_MEMORY = (
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "not enough memory",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)
# TensorProto's numbers of the types that NumPy lacks, by how their bits are held.
ONNX_TYPES = {STORAGE["bfloat16"]: 16, STORAGE["float8e4m3fn"]: 17}
# What a provider has no kernels for, by precision (tried with ONNX Runtime 1.31: of bfloat16, the CPU's has
# only what moves values). Its fp16 kernels are few, but it casts around the others.
MISSING_KERNELS: Mapping[str, tuple[str, ...]] = {CPU: ("bf16",)}
# Beyond any machine: ONNX Runtime starts whatever number it is told.
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeOptions:
    """Settings of ONNX Runtime sessions.

    `providers`: execution providers in order of preference; None lets `device` choose. `threads`: of one operator;
    None is ONNX Runtime's choice, a thread a physical core. `memory_arena`: keep freed CPU memory for the next call
    (faster; off gives it back). `memory_pattern`: plan allocations by shape (faster for repeated sizes).
    """

    providers: tuple[str, ...] | None = None
    threads: int | None = None
    memory_arena: bool = True
    memory_pattern: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.providers, str):
            raise BackendError(
                f"providers is {self.providers!r}",
                expected="a tuple of names",
                fix=f"Pass providers=({self.providers!r},).",
            )
        threads = self.threads
        if threads is not None and not (type(threads) is int and 1 <= threads <= MAX_THREADS):
            raise BackendError(
                f"threads is {threads!r}",
                expected=f"a whole number from 1 to {MAX_THREADS}, or None",
                fix="Leave it out for a thread a physical core.",
            )

    def on_cpu(self, device: str) -> bool:
        """Whether sessions with these settings run on the CPU provider alone."""
        return self.providers == (CPU,) if self.providers else not device.startswith("cuda")


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A session of ONNX Runtime, and the arrays in place of the bundle's weights: it has their addresses only."""

    session: Any
    weights: Mapping[str, Buffer]


class _Network:
    """One graph in ONNX Runtime, which a session and its clones share."""

    def __init__(self, path: Path, settings: Callable[[], Any], providers: list[Any]) -> None:
        self.path = path
        self.on_cpu = providers == [CPU]
        self._settings, self._providers = settings, providers
        self.loaded = self._load({})

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        """Load the graph again, over these weights: what runs meanwhile still has the others."""
        self.loaded = self._load(weights)

    def _load(self, weights: Mapping[str, Buffer]) -> _Loaded:
        ort = _onnxruntime()
        settings = self._settings()
        with _translated(f"loading {self.path}"):
            if weights:
                # Not add_initializer: what ONNX Runtime folds at load it would fold from the file's values.
                values = [_ort_value(ort, array) for array in weights.values()]
                settings.add_external_initializers(list(weights), values)
            # Its fallback prints to stdout and retries on the CPU without saying so to the caller.
            session = ort.InferenceSession(str(self.path), settings, providers=self._providers, enable_fallback=0)
        first = _name(self._providers[0])
        if session.get_providers()[0] != first:
            # A provider whose library does not load is left out without an error.
            raise BackendError(
                f"ONNX Runtime runs {self.path.name} on {session.get_providers()[0]}",
                expected=f"{first}, as asked",
                fix="Run: telecine doctor (it checks the driver and both onnxruntime packages), or use device='cpu'.",
            )
        return _Loaded(session, weights)


class OnnxRuntimeSession(Session):
    """One graph on ONNX Runtime."""

    def __init__(self, graph: Graph, network: _Network) -> None:
        super().__init__(graph)
        self._graph = graph
        self._network: _Network | None = network
        # IO binding keeps addresses only: these references keep the arrays alive.
        self._bound: dict[str, Buffer] = {}
        # Of the network as it was when the first of them was bound: what is unbound keeps no old weights alive.
        self._loaded: _Loaded | None = None
        self._binding: Any = None
        self._checked = False  # whether what is bound fits together

    @classmethod
    def load(
        cls,
        graph: Graph,
        path: Path,
        *,
        device: str,
        options: OnnxRuntimeOptions,
        precision: str = "fp32",
        stream: int | None = None,
        prepack: bool = True,
    ) -> OnnxRuntimeSession:
        """`path` is that of the graph's file; the CPU provider gets the one beside it that is made for it, if any.

        `precision` is that of the graph's component; `stream` a CUDA stream's handle, None for the provider's own.
        `prepack` copies the CPU's weights into the order in which its kernels read them: a copy of them in memory, and
        half of the time to load, for a few percent of a large run.

        Raises:
            BackendError: ONNX Runtime is missing, refuses the graph, lacks the device, or kernels for the precision.
        """
        providers = _providers(_onnxruntime(), device, options, stream)
        _check_precision(path, precision, _name(providers[0]))
        if graph.onnxruntime_cpu is not None and providers == [CPU]:
            path = path.parents[len(Path(graph.file.path).parts) - 1] / graph.onnxruntime_cpu.path
        return cls(graph, _Network(path, partial(_settings, options, precision, prepack), providers))

    def bind(self, name: str, buffer: Buffer) -> None:
        self.check_open()
        self.check_buffer(name, buffer)
        self._use_current_weights()
        self._bind(name, buffer)
        self._bound[name] = buffer
        self._checked = False

    def _bind(self, name: str, buffer: Buffer) -> None:
        with _translated(f"binding {name}"):
            if name in self.inputs:
                self._binding.bind_cpu_input(name, buffer)
            else:
                self._binding.bind_output(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)

    def _use_current_weights(self) -> None:
        """Bind what is bound to the network as it is now, where weights were replaced since."""
        assert self._network is not None
        if self._loaded is not self._network.loaded:
            self._loaded = self._network.loaded
            self._binding = self._loaded.session.io_binding()
            for name, buffer in self._bound.items():
                self._bind(name, buffer)

    def unbind(self) -> None:
        self._binding = self._loaded = None  # clearing a binding leaves references to its input arrays
        self._bound.clear()
        self._checked = False

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        if not self._checked:
            self.check_bound(self._bound)
            self._checked = True
        self._use_current_weights()
        assert self._loaded is not None
        assert self._network is not None
        with _translated("running"):
            if not self._network.on_cpu:
                # For another device an input is copied when it is bound, and its buffer may have changed since.
                for name in self.inputs:
                    self._binding.bind_cpu_input(name, self._bound[name])
            self._loaded.session.run_with_iobinding(self._binding)

    @property
    def batch_pays(self) -> bool:
        """Not on a CPU: one row fills it."""
        self.check_open()
        assert self._network is not None
        return not self._network.on_cpu

    def clone(self) -> OnnxRuntimeSession:
        self.check_open()
        assert self._network is not None
        return OnnxRuntimeSession(self._graph, self._network)

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        self.check_open()
        assert self._network is not None
        check_weights(weights, read_initializers(self._network.path))
        self._network.replace({name: np.require(array, None, "C") for name, array in weights.items()})

    def close(self) -> None:
        self.unbind()
        self._network = None

    @property
    def closed(self) -> bool:
        return self._network is None


def _ort_value(ort: Any, array: Buffer) -> Any:
    """An initializer's value over the array's own memory."""
    if array.dtype in ONNX_TYPES:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES[array.dtype])
    return ort.OrtValue.ortvalue_from_numpy(array)


def _settings(options: OnnxRuntimeOptions, precision: str, prepack: bool) -> Any:
    """ONNX Runtime's SessionOptions; one for each session, as they hold its weights."""
    settings = _onnxruntime().SessionOptions()
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = options.memory_arena
    settings.enable_mem_pattern = options.memory_pattern
    settings.log_severity_level = 4  # fatal: its errors come as exceptions too, and need not be said twice
    if not prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if precision == "fp8":
        # Its rewriting of QuantizeLinear and DequantizeLinear knows 8-bit integers, and fails on float8.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported: {error}",
            expected="the onnxruntime package",
            fix='Run: pip install "telecine[onnxruntime]"',
        ) from error
    return onnxruntime


def _providers(ort: Any, device: str, options: OnnxRuntimeOptions, stream: int | None) -> list[Any]:
    """Execution providers for a device: "auto", "cpu", "cuda" or "cuda:N"; `stream` is for CUDA's."""
    available = ort.get_available_providers()
    wanted = list(options.providers or ())
    if not wanted:
        kind, _, index = device.partition(":")
        if kind == "cuda":
            if CUDA not in available:
                raise BackendError(
                    f"device {device} with an ONNX Runtime that has {', '.join(available)}",
                    expected=CUDA,
                    fix='Run: pip uninstall onnxruntime; pip install "telecine[onnxruntime-gpu]"',
                )
            settings: dict[str, Any] = {"device_id": int(index or 0)}
            if stream is not None:
                settings["user_compute_stream"] = str(stream)
            return [(CUDA, settings), CPU]
        return [CPU]
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise BackendError(
            f"execution provider {', '.join(unknown)}",
            expected=f"one of {', '.join(available)}",
            fix="Install the onnxruntime package that has it, or name another.",
        )
    return wanted


def _name(provider: Any) -> str:
    name: str = provider if isinstance(provider, str) else provider[0]
    return name


def _check_precision(path: Path, precision: str, provider: str) -> None:
    if precision in MISSING_KERNELS.get(provider, ()):
        raise BackendError(
            f"{path.parent.name} is {precision}, on {provider}",
            expected=f"fp32, fp16 or fp8: ONNX Runtime has no {precision} kernels there",
            fix="Export the bundle at fp16 or fp32 (--precision, --component), or run this one on a GPU.",
        )


@cache
def _faults() -> tuple[type[Exception], ...]:
    """All that this version has: versions differ, and a name that one lacks would hide the fault itself."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, MemoryError)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """ONNX Runtime's exceptions, which share no base class but Exception, as BackendError."""
    try:
        yield
    except _faults() as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
            raise out_of_memory(f"ONNX Runtime, {doing}: {text}") from error
        raise BackendError(
            f"ONNX Runtime failed {doing}: {text}",
            expected="a graph that this ONNX Runtime runs",
            fix="Run: telecine doctor; then telecine inspect --check BUNDLE.",
        ) from error
