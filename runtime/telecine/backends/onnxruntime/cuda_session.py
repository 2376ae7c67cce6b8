"""Sessions of ONNX Runtime on a GPU: what is bound is used where it lies, and steps hand over without the host."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from telecine.axes import Shape
from telecine.backends.base import Buffer, DeviceBuffer
from telecine.backends.cuda.array import on_device
from telecine.backends.cuda.session import DeviceSession
from telecine.backends.onnxruntime.cuda_network import CudaNetwork
from telecine.backends.onnxruntime.library import load_onnxruntime, translated
from telecine.backends.onnxruntime.network import Loaded
from telecine.errors import BackendError
from telecine.manifest import Graph

Place = tuple[int, Shape]  # an address, and the shape of what lies there


class OnnxRuntimeCudaSession(DeviceSession):
    """One graph on ONNX Runtime's CUDA or TensorRT provider.

    Its work runs on one stream, which clones share. A stream that `enqueue` names is ordered with that one by events,
    both ways: for the caller it is as if the work ran on theirs.
    """

    def __init__(self, graph: Graph, network: CudaNetwork) -> None:
        self._network: CudaNetwork | None = network
        self._loaded: Loaded | None = None  # what `_binding` is of
        self._binding: Any = None
        self._places: dict[str, Place] = {}  # that the binding was told
        self._shapes: Mapping[str, Shape] | None = None
        with ExitStack() as stack:
            stack.callback(network.hold().let_go)
            dtypes = {spec.name: np.dtype(spec.dtype) for spec in (*graph.inputs, *graph.outputs)}
            super().__init__(graph, network.device, dtypes, stack)
            self._resources = stack.pop_all()

    @property
    def network(self) -> CudaNetwork:
        assert self._network is not None
        return self._network

    @property
    def stream(self) -> int:
        self.check_open()
        return self.network.stream

    def bind(self, name: str, buffer: Buffer | DeviceBuffer) -> None:
        self.check_open()
        if name in self.network.inputs_on_host and on_device(buffer):
            raise BackendError(
                f"{name} is in device memory",
                expected="a NumPy array: ONNX Runtime reads this input on the host",
                fix="Bind it from the host, or use backend='tensorrt'.",
            )
        super().bind(name, buffer)

    def unbind(self) -> None:
        super().unbind()
        self._binding = self._loaded = None  # what is unbound keeps no old weights alive
        self._places.clear()

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        self.check_open()
        self.network.replace(weights)

    def clone(self) -> OnnxRuntimeCudaSession:
        self.check_open()
        return OnnxRuntimeCudaSession(self._graph, self.network)

    def close(self) -> None:
        if self.closed:
            return
        self._device.use()
        self._wait()
        self.unbind()
        self._network = None
        self._resources.close()

    @property
    def closed(self) -> bool:
        return self._network is None

    def _runs_on(self, stream: int) -> int:
        return self.stream

    def _prepare(self, handle: int) -> None:
        shapes = {name: slot.shape for name, slot in self._slots.items()}
        if shapes != self._shapes:
            self._wait()  # memory may be freed to grow
            self._shapes = shapes
        places = {name: self._place(name) for name in self._slots}
        changed = {name: place for name, place in places.items() if place != self._places.get(name)}
        self._places = places
        if self._binding is not None:
            self._tell(changed)

    def _place(self, name: str) -> Place:
        slot = self._slots[name]
        if name in self.network.inputs_on_host:
            assert isinstance(slot.bound, np.ndarray)
            return slot.bound.ctypes.data, slot.shape
        return slot.address(), slot.shape

    def _tell(self, places: Mapping[str, Place]) -> None:
        """Bind these where they lie."""
        with translated("binding"):
            for name, (address, shape) in places.items():
                on_host = name in self.network.inputs_on_host
                bind = self._binding.bind_input if name in self.inputs else self._binding.bind_output
                kind, index = ("cpu", 0) if on_host else ("cuda", self._device.index)
                bind(name, kind, index, self._slots[name].dtype.type, list(shape), address)

    def _launch(self, handle: int) -> None:
        network = self.network
        with network.lock:
            if self._loaded is not network.loaded:  # new, or over other weights
                self._wait()
                self._loaded, self._binding = network.loaded, network.loaded.session.io_binding()
                self._tell(self._places)
            with translated("running"):
                self._loaded.session.run_with_iobinding(self._binding, self._run_options())

    def _run_options(self) -> Any:
        """No run waits for the device; what must be waited for has events."""
        options = load_onnxruntime().RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        graph = self.network.graph_id(tuple(self._places.items()))
        if graph is not None:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options
