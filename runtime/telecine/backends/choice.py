"""Which backend a bundle's networks run on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from telecine.backends.base import NetworkFacts, Session
from telecine.backends.cuda.options import CudaGraphs, check_cuda_graphs
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.backends.onnxruntime.opening import open_session
from telecine.backends.onnxruntime.providers import CPU, CUDA, ON_CUDA
from telecine.bundle import Bundle
from telecine.errors import BackendError, EngineError

if TYPE_CHECKING:
    from telecine.backends.tensorrt.backend import TensorRtBackend
    from telecine.backends.tensorrt.opening import Plan

BACKENDS = ("auto", "onnxruntime", "tensorrt")
# Networks that run once for many runs of the others: their weights stay mapped files, and are not packed as they load.
RUN_RARELY = ("text_encoder",)
LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """Loads a bundle's networks."""

    def load(self, component: str, role: str, weights: int | None = None) -> Session:
        """`weights`: bytes of them to load, of a network whose `facts` say that it streams the others; None: all that
        fit.

        Raises:
            BundleError: the bundle lacks the graph.
            BackendError, EngineError: it cannot be loaded.
        """
        ...

    def limits(self, component: str, role: str) -> Mapping[str, int] | None:
        """The largest size of each axis that the graph takes, by symbol; None where it takes every size.

        Raises:
            BundleError, BackendError, EngineError: as `load`, which is not done for this.
        """
        ...

    def facts(self, component: str, role: str) -> NetworkFacts:
        """
        Raises:
            BundleError, BackendError, EngineError: as `load`, which is not done for this.
        """
        ...

    def device_bytes(self) -> int | None:
        """Memory that is taken now on the GPU that networks run on, by whatever process; None where none is used."""
        ...


def choose_backend(
    bundle: Bundle,
    backend: str,
    *,
    device: str,
    engines: str | os.PathLike[str] | None,
    options: OnnxRuntimeOptions | None,
    stream: int | None = None,
    cuda_graphs: CudaGraphs = "auto",
) -> Backend:
    """The backend of `load`'s arguments; "auto" decides for each network when it loads.

    CUDA graphs that are "auto" are TensorRT's alone, which its launches are timed for. ONNX Runtime captures each
    thread's runs by itself, and no other thread may allocate on the GPU meanwhile: only a caller knows that none does.

    Raises:
        BackendError: an unknown backend or device, arguments that contradict each other, or (for "tensorrt") no GPU
            that can be used.
        EngineError: the folder of engines is missing.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}", fix="Leave it out: auto chooses."
        )
    kind, colon, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise BackendError(f"device {device!r}", expected="auto, cpu, cuda or cuda:N", fix="Use 'cpu'.")
    if backend == "tensorrt" and kind == "cpu":
        raise BackendError(
            f"device {device!r} with backend 'tensorrt'", expected="auto, cuda or cuda:N", fix="Leave device out."
        )
    if backend == "tensorrt" and options is not None:
        raise BackendError(
            "options of ONNX Runtime with backend 'tensorrt'",
            expected="none",
            fix="Leave options (--threads, ...) out.",
        )
    if engines is not None and (backend == "onnxruntime" or kind == "cpu"):
        raise BackendError(
            f"engines with backend {backend!r} and device {device!r}",
            expected="TensorRT on a GPU, which they are for",
            fix="Leave engines out, or use backend='tensorrt'.",
        )
    options = options or OnnxRuntimeOptions()
    check_cuda_graphs(cuda_graphs)
    on_cuda = options.providers[0] in ON_CUDA if options.providers else kind == "cuda"
    if cuda_graphs is True and not on_cuda and (backend == "onnxruntime" or kind == "cpu"):
        raise BackendError(
            f"cuda_graphs=True with backend {backend!r} and device {device!r}",
            expected="a GPU",
            fix="Leave cuda_graphs out, or use device='cuda'.",
        )
    if stream is not None:
        _check_stream(stream, backend, kind, options)
    onnxruntime = OnnxRuntimeBackend(
        bundle, device=device, options=options, stream=stream, cuda_graphs=on_cuda and cuda_graphs is True
    )
    if backend == "onnxruntime" or (backend == "auto" and kind == "cpu"):
        return onnxruntime
    folder = _folder(bundle, engines, must=backend == "tensorrt")
    if backend == "auto" and not folder.is_dir():
        return onnxruntime
    from telecine.backends.tensorrt.backend import TensorRtBackend  # a fifth of telecine's import time

    tensorrt = TensorRtBackend(bundle, device=device, engines=folder, stream=stream, cuda_graphs=cuda_graphs)
    if backend == "auto":
        return AutoBackend(tensorrt, onnxruntime)
    tensorrt.device()
    return tensorrt


class OnnxRuntimeBackend:
    """A bundle's graphs on ONNX Runtime."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str,
        options: OnnxRuntimeOptions,
        stream: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self._bundle, self._device, self._options = bundle, device, options
        self._stream, self._cuda_graphs = stream, cuda_graphs

    def load(self, component: str, role: str, weights: int | None = None) -> Session:
        self._bundle.require_weights(component)
        graph = self._bundle.graph(component, role)
        return open_session(
            graph,
            self._bundle.path(graph.file),
            device=self._device,
            options=self._options,
            precision=self._bundle.component(component).precision,
            stream=self._stream,
            prepack=component not in RUN_RARELY,
            cuda_graphs=self._cuda_graphs,
        )

    def limits(self, component: str, role: str) -> None:
        return None

    def facts(self, component: str, role: str) -> NetworkFacts:
        entry = self._bundle.component(component)
        providers = self._options.providers
        on_cpu = providers == (CPU,) if providers else not self._device.startswith("cuda")
        weights = entry.weights.size
        if on_cpu and entry.precision != "fp32":
            weights += 4 * entry.parameters  # it casts them to float32 as it loads, and keeps both
        # Other weights stay beside what is made of them.
        return NetworkFacts(weights=weights, replaced=weights + entry.weights.size, batch_pays=not on_cpu)

    def device_bytes(self) -> int | None:
        """
        Raises:
            BackendError: there is no such GPU, or no cuda-bindings.
        """
        first = (self._options.providers or [CUDA if self._device.startswith("cuda") else CPU])[0]
        if first not in ON_CUDA:
            return None
        from telecine.backends.cuda.device import Device  # here: a run on the CPU needs nothing of CUDA

        return Device.open(self._device).used_bytes()


class AutoBackend:
    """TensorRT for a network where an engine, a library and a GPU fit, else ONNX Runtime.

    An engine that fits and then fails is an error all the same, and so is a size that it has no profile for.
    """

    def __init__(self, tensorrt: TensorRtBackend, onnxruntime: OnnxRuntimeBackend) -> None:
        self._tensorrt, self._onnxruntime = tensorrt, onnxruntime

        self._plans: dict[tuple[str, str], Plan | None] = {}

    def load(self, component: str, role: str, weights: int | None = None) -> Session:
        plan = self._plan(component, role)
        return self._tensorrt.open(plan, weights) if plan else self._onnxruntime.load(component, role)

    def limits(self, component: str, role: str) -> Mapping[str, int] | None:
        plan = self._plan(component, role)
        return self._tensorrt.limits_of(plan) if plan else None

    def facts(self, component: str, role: str) -> NetworkFacts:
        plan = self._plan(component, role)
        return self._tensorrt.facts_of(plan) if plan else self._onnxruntime.facts(component, role)

    def device_bytes(self) -> int | None:
        return self._tensorrt.device_bytes() if any(self._plans.values()) else None

    def _plan(self, component: str, role: str) -> Plan | None:
        """The plan that a graph runs with, chosen once: limits are those of what is loaded."""
        key = (component, role)
        if key not in self._plans and not self._tensorrt.has_plans(component, role):
            self._plans[key] = None
        if key not in self._plans:
            try:
                self._plans[key] = self._tensorrt.find(component, role)
            except (BackendError, EngineError) as error:
                LOG.warning("%s runs on ONNX Runtime: %s", component, error)
                self._plans[key] = None
        return self._plans[key]


def _check_stream(stream: int, backend: str, kind: str, options: OnnxRuntimeOptions | None) -> None:
    """What `stream` needs: a handle, and a GPU that every network runs on."""
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 < stream < 2**64:
        raise BackendError(
            f"stream is {stream!r}",
            expected="the handle of a CUDA stream, as a number above 0",
            fix="Make one with cudaStreamCreate; CUDA's legacy default stream is 1.",
        )
    if kind != "cuda" and not (backend == "tensorrt" and kind == "auto"):
        raise BackendError(
            f"a CUDA stream with backend {backend!r} and device {kind!r}",
            expected="a GPU for every network: the CPU has no streams, and auto may choose it",
            fix="Pass device='cuda:N', the stream's own, or leave stream out.",
        )
    if options is not None and options.providers is not None:
        raise BackendError(
            "a CUDA stream with providers of ONNX Runtime",
            expected="the providers that device chooses, which are given the stream",
            fix="Leave providers out.",
        )


def _folder(bundle: Bundle, engines: str | os.PathLike[str] | None, *, must: bool) -> Path:
    """Where the engines lie: in the bundle, or in a folder that was named."""
    folder = bundle.root / "engines" if engines is None else Path(os.path.expanduser(engines))
    if (must or engines is not None) and not folder.is_dir():
        raise EngineError(
            f"{folder} is not a folder",
            expected="engines that telecine build wrote",
            fix="Run: telecine build BUNDLE, or name the folder with engines=DIR (--engines).",
        )
    return folder
