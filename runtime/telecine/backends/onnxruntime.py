"""Graphs on ONNX Runtime, bound through its IO binding: no copy between NumPy and the CPU provider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from telecine.backends.base import Buffer, Session, out_of_memory
from telecine.errors import BackendError
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


class OnnxRuntimeSession(Session):
    """One graph on ONNX Runtime."""

    def __init__(self, graph: Graph, session: Any) -> None:
        super().__init__(graph)
        self._graph = graph
        self._session = session
        self._binding = session.io_binding()
        # IO binding keeps addresses only: these references keep the arrays alive.
        self._bound: dict[str, Buffer] = {}
        self._checked = False  # whether what is bound fits together
        self._on_cpu: bool = session.get_providers() == [CPU]

    @classmethod
    def load(cls, graph: Graph, path: Path, *, device: str, options: OnnxRuntimeOptions) -> OnnxRuntimeSession:
        """`path` is that of the graph's file; the CPU provider gets the one beside it that is made for it, if any.

        Raises:
            BackendError: ONNX Runtime is missing, refuses the graph, or lacks the device.
        """
        ort = _onnxruntime()
        settings = ort.SessionOptions()
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        settings.enable_cpu_mem_arena = options.memory_arena
        settings.enable_mem_pattern = options.memory_pattern
        settings.log_severity_level = 4  # fatal: its errors come as exceptions too, and need not be said twice
        wanted = _providers(ort, device, options)
        if graph.onnxruntime_cpu is not None and wanted == [CPU]:
            path = path.parents[len(Path(graph.file.path).parts) - 1] / graph.onnxruntime_cpu.path
        with _translated(f"loading {path}"):
            # Its fallback prints to stdout and retries on the CPU without saying so to the caller.
            session = ort.InferenceSession(str(path), settings, providers=wanted, enable_fallback=0)
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if session.get_providers()[0] != first:
            # A provider whose library does not load is left out without an error.
            raise BackendError(
                f"ONNX Runtime runs {path.name} on {session.get_providers()[0]}",
                expected=f"{first}, as asked",
                fix="Run: telecine doctor (it checks the driver and both onnxruntime packages), or use device='cpu'.",
            )
        return cls(graph, session)

    def bind(self, name: str, buffer: Buffer) -> None:
        self.check_open()
        self.check_buffer(name, buffer)
        with _translated(f"binding {name}"):
            if name in self.inputs:
                self._binding.bind_cpu_input(name, buffer)
            else:
                self._binding.bind_output(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)
        self._bound[name] = buffer
        self._checked = False

    def unbind(self) -> None:
        if not self.closed:
            self._binding = self._session.io_binding()  # clearing one leaves references to its input arrays
        self._bound.clear()
        self._checked = False

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        if not self._checked:
            self.check_bound(self._bound)
            self._checked = True
        with _translated("running"):
            if not self._on_cpu:
                # For another device an input is copied when it is bound, and its buffer may have changed since.
                for name in self.inputs:
                    self._binding.bind_cpu_input(name, self._bound[name])
            self._session.run_with_iobinding(self._binding)

    @property
    def batch_pays(self) -> bool:
        """Not on a CPU: one row fills it."""
        return not self._on_cpu

    def clone(self) -> OnnxRuntimeSession:
        self.check_open()
        return OnnxRuntimeSession(self._graph, self._session)

    def close(self) -> None:
        self._binding = self._session = None
        self._bound.clear()

    @property
    def closed(self) -> bool:
        return self._session is None


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


def _providers(ort: Any, device: str, options: OnnxRuntimeOptions) -> list[Any]:
    """Execution providers for a device: "auto", "cpu", "cuda" or "cuda:N"."""
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
            return [(CUDA, {"device_id": int(index or 0)}), CPU]
        return [CPU]
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise BackendError(
            f"execution provider {', '.join(unknown)}",
            expected=f"one of {', '.join(available)}",
            fix="Install the onnxruntime package that has it, or name another.",
        )
    return wanted


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
