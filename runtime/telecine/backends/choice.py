"""Which backend a bundle's networks run on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from telecine.backends.base import Session
from telecine.backends.cuda.options import CudaGraphs, check_cuda_graphs
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.backends.onnxruntime.opening import open_session
from telecine.backends.onnxruntime.providers import ON_CUDA
from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.backends.tensorrt.opening import Plan
from telecine.backends.tensorrt.profiles import largest_sizes
from telecine.bundle import Bundle
from telecine.errors import BackendError, EngineError

BACKENDS = ("auto", "onnxruntime", "tensorrt")
LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """Loads a bundle's networks."""

    def load(self, component: str, role: str) -> Session:
        """
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


def choose_backend(
    bundle: Bundle,
    backend: str,
    *,
    device: str,
    engines: str | os.PathLike[str] | None,
    options: OnnxRuntimeOptions | None,
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
    onnxruntime = OnnxRuntimeBackend(
        bundle, device=device, options=options, cuda_graphs=on_cuda and cuda_graphs is True
    )
    if backend == "onnxruntime" or (backend == "auto" and kind == "cpu"):
        return onnxruntime
    folder = _folder(bundle, engines, must=backend == "tensorrt")
    tensorrt = TensorRtBackend(bundle, device=device, engines=folder, cuda_graphs=cuda_graphs)
    if backend == "auto":
        return AutoBackend(tensorrt, onnxruntime)
    tensorrt.device()
    return tensorrt


class OnnxRuntimeBackend:
    """A bundle's graphs on ONNX Runtime."""

    def __init__(self, bundle: Bundle, *, device: str, options: OnnxRuntimeOptions, cuda_graphs: bool) -> None:
        self._bundle, self._device, self._options, self._cuda_graphs = bundle, device, options, cuda_graphs

    def load(self, component: str, role: str) -> Session:
        self._bundle.require_weights(component)
        graph = self._bundle.graph(component, role)
        return open_session(
            graph,
            self._bundle.path(graph.file),
            device=self._device,
            options=self._options,
            precision=self._bundle.component(component).precision,
            cuda_graphs=self._cuda_graphs,
        )

    def limits(self, component: str, role: str) -> None:
        return None


class AutoBackend:
    """TensorRT for a network where an engine, a library and a GPU fit, else ONNX Runtime.

    An engine that fits and then fails is an error all the same, and so is a size that it has no profile for.
    """

    def __init__(self, tensorrt: TensorRtBackend, onnxruntime: OnnxRuntimeBackend) -> None:
        self._tensorrt, self._onnxruntime = tensorrt, onnxruntime

        self._plans: dict[tuple[str, str], Plan | None] = {}

    def load(self, component: str, role: str) -> Session:
        plan = self._plan(component, role)
        return self._tensorrt.open(plan) if plan else self._onnxruntime.load(component, role)

    def limits(self, component: str, role: str) -> Mapping[str, int] | None:
        plan = self._plan(component, role)
        return largest_sizes(plan.sidecar) if plan else None

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
