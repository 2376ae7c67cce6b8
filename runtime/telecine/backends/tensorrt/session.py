"""Graphs on TensorRT: an execution context, and what it was told of shapes and addresses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from telecine.axes import Shape
from telecine.backends.base import Buffer
from telecine.backends.cuda.graph import Launches
from telecine.backends.cuda.memory import DeviceMemory
from telecine.backends.cuda.options import CudaGraphs
from telecine.backends.cuda.session import DeviceSession
from telecine.backends.cuda.stream import Stream
from telecine.backends.tensorrt.engine import Engine
from telecine.backends.tensorrt.profiles import choose_profile
from telecine.errors import BackendError, EngineError
from telecine.manifest import Graph, TensorSpec

# What TensorRT and NumPy both have.
HOST_TYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


class TensorRtSession(DeviceSession):
    """One graph on TensorRT, on a stream of its own or the caller's.

    With `cuda_graphs`, "auto" or True, launches are captured as CUDA graphs (see `Launches`), but for weights that are
    streamed from the host. TensorRT for RTX has a capture of its own, which True turns on: its kernels are compiled
    while it runs, so nothing is timed there.
    """

    def __init__(
        self, graph: Graph, engine: Engine, *, stream: int | None = None, cuda_graphs: CudaGraphs = False
    ) -> None:
        """`stream` is the handle of the caller's, which clones share; None makes one of its own."""
        self._engine, self._cuda_graphs = engine, cuda_graphs
        self._context: Any = None
        self._shapes: Mapping[str, Shape] | None = None  # that the context was told
        self._addresses: dict[str, int] = {}  # that the context was told
        self._profile = 0  # of a new context
        with ExitStack() as stack:
            stack.callback(engine.hold().let_go)
            self._callers = stream
            if stream is None:
                own = Stream(engine.device)
                stack.callback(own.close)
                stream = own.handle
            self._stream = stream
            self._activations = DeviceMemory(engine.device)
            stack.callback(self._activations.close)
            super().__init__(graph, engine.device, {spec.name: _dtype(spec) for spec in _said(engine)}, stack)
            rtx = engine.library.is_rtx
            captured_here = not rtx and not engine.sidecar.weight_streaming
            self._launches = Launches(engine.device, cuda_graphs if captured_here else False)
            stack.callback(self._launches.forget)
            self._context = engine.context(cuda_graphs=rtx and cuda_graphs is True)
            self._resources = stack.pop_all()

    @property
    def stream(self) -> int:
        return self._stream

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        self.check_open()
        self._engine.replace(weights)

    def clone(self) -> TensorRtSession:
        self.check_open()
        return TensorRtSession(self._graph, self._engine, stream=self._callers, cuda_graphs=self._cuda_graphs)

    def close(self) -> None:
        if self.closed:
            return
        self._device.use()
        self._wait()
        self.unbind()
        self._context = None  # before the memory that it was given, and the engine
        self._resources.close()

    @property
    def closed(self) -> bool:
        return self._context is None

    def _launch(self, handle: int) -> None:
        key = tuple(self._addresses.values())
        self._check(self._engine.launch(self._context, handle, self._launches, key), "running")

    def _prepare(self, handle: int) -> None:
        """
        Raises:
            EngineError: no profile takes the shapes.
            BackendError: TensorRT refuses one, or memory runs out.
        """
        shapes = {name: self._slots[name].shape for name in self.inputs}
        if shapes != self._shapes:
            self._wait()  # memory may be freed to grow
            self._launches.forget()
            self._shapes = None
            self._set_shapes(shapes, handle)
            self._shapes = shapes
        for name, slot in self._slots.items():
            address = slot.address()
            if address != self._addresses.get(name):
                self._check(self._context.set_tensor_address(name, address), f"binding {name}")
                self._addresses[name] = address

    def _set_shapes(self, shapes: Mapping[str, Shape], handle: int) -> None:
        context = self._context
        profile = choose_profile(self._engine.sidecar.profiles, self.inputs, shapes)
        if profile != self._profile:
            self._check(context.set_optimization_profile_async(profile, handle), f"choosing profile {profile}")
            self._profile = profile
        for name, shape in shapes.items():
            self._check(context.set_input_shape(name, shape), f"setting the shape {shape} of {name}")
        self._check(not context.infer_shapes(), "working out shapes")
        for name in self.outputs:
            shape, wanted = tuple(context.get_tensor_shape(name)), self._slots[name].shape
            if shape != wanted:
                raise BackendError(
                    f"the engine makes {name} in shape {shape}",
                    expected=f"{wanted}, by the graph's contract",
                    fix="Run: telecine build BUNDLE",
                )
        size = context.update_device_memory_size_for_shapes()
        context.set_device_memory(self._activations.reserve(max(size, 1)), self._activations.size)

    def _check(self, done: bool, doing: str) -> None:
        if not done:
            self._shapes, self._ready = None, False
            raise self._engine.fault(doing)


def _said(engine: Engine) -> tuple[TensorSpec, ...]:
    """The plan's own inputs and outputs, which may have other dtypes than the graph's."""
    return (*engine.sidecar.inputs, *engine.sidecar.outputs)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    if spec.dtype not in HOST_TYPES:
        raise EngineError(
            f"{spec.name} of the engine is {spec.dtype}",
            expected=f"a type that NumPy has: {', '.join(HOST_TYPES)}",
            fix="Export and build again: the graph's first and last nodes cast.",
        )
    return np.dtype(spec.dtype)
