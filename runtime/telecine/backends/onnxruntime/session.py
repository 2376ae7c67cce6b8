"""Sessions of ONNX Runtime on the host's arrays: no copy between NumPy and the CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.backends.base import Buffer, Session
from telecine.backends.onnxruntime.library import load_onnxruntime, translated
from telecine.backends.onnxruntime.network import Loaded, Network
from telecine.backends.onnxruntime.options import OnnxRuntimeOptions
from telecine.backends.onnxruntime.providers import (
    CPU,
    ON_CUDA,
    check_precision,
    choose_providers,
    with_options,
)
from telecine.manifest import Graph


class OnnxRuntimeSession(Session):
    """One graph on ONNX Runtime; providers that are neither the CPU's nor CUDA's copy what is bound."""

    def __init__(self, graph: Graph, network: Network) -> None:
        super().__init__(graph)
        self._graph = graph
        self._network: Network | None = network
        # IO binding keeps addresses only: these references keep the arrays alive.
        self._bound: dict[str, Buffer] = {}
        # Of the network as it was when the first of them was bound: what is unbound keeps no old weights alive.
        self._loaded: Loaded | None = None
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
        prepack: bool = True,
    ) -> OnnxRuntimeSession:
        """`path` is that of the graph's file; the CPU provider gets the one beside it that is made for it, if any.

        `precision` is that of the graph's component. `prepack` copies the CPU's weights into the order in which its
        kernels read them: a copy of them in memory, and half of the time to load, for a few percent of a large run.

        Raises:
            BackendError: ONNX Runtime is missing, refuses the graph, lacks the device, or kernels for the precision.
        """
        providers = choose_providers(load_onnxruntime(), device, options)
        assert providers[0] not in ON_CUDA, "open_session opens those"
        check_precision(path, precision, providers[0])
        if graph.onnxruntime_cpu is not None and providers == (CPU,):
            path = path.parents[len(Path(graph.file.path).parts) - 1] / graph.onnxruntime_cpu.path
        described = [with_options(name, options, {}) for name in providers]
        return cls(graph, Network(path, options, precision, described, prepack=prepack))

    def bind(self, name: str, buffer: Buffer) -> None:
        self.check_open()
        self.check_buffer(name, buffer)
        self._use_current_weights()
        self._bind(name, buffer)
        self._bound[name] = buffer
        self._checked = False

    def _bind(self, name: str, buffer: Buffer) -> None:
        with translated(f"binding {name}"):
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
        with translated("running"):
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
        self._network.replace(weights)

    def close(self) -> None:
        self.unbind()
        self._network = None

    @property
    def closed(self) -> bool:
        return self._network is None
