"""Graphs on TensorRT: an execution context, its stream, and what is bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from telecine.axes import Shape
from telecine.backends.base import Buffer, DeviceBuffer, Session
from telecine.backends.cuda.array import Borrowed, borrow, on_device
from telecine.backends.cuda.memory import DeviceMemory
from telecine.backends.cuda.stream import Event, Stream, order
from telecine.backends.cuda.workspace import ALIGNMENT, Workspace
from telecine.backends.tensorrt.engine import Engine
from telecine.backends.tensorrt.profiles import choose_profile
from telecine.backends.tensorrt.slot import Slot
from telecine.errors import BackendError, EngineError
from telecine.manifest import Graph, TensorSpec

# What TensorRT and NumPy both have.
HOST_TYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


class TensorRtSession(Session):
    """One graph on TensorRT, on a stream of its own or the caller's.

    Host arrays are copied in and out, and `enqueue` waits for them; with device arrays alone it does not wait. Work on
    a device array is ordered with its owner's stream where the array names one (`__cuda_array_interface__`, version 3);
    others (DLPack) are ready once the enqueued stream is, `stream` where none was named.
    """

    def __init__(self, graph: Graph, engine: Engine) -> None:
        super().__init__(graph)
        self._graph, self._engine, self._device = graph, engine, engine.device
        self._context: Any = None
        self._shapes: Mapping[str, Shape] | None = None  # that the context was told
        self._addresses: dict[str, int] = {}  # that the context was told
        self._profile = 0  # of a new context
        self._last: int | None = None  # the stream of the latest call
        self._retired: list[Callable[[], None]] = []  # device arrays to give back once that call is done
        self._ready = False  # whether the context was told of all that is bound
        with ExitStack() as stack:
            stack.callback(engine.hold().let_go)
            self._stream = Stream(self._device)
            stack.callback(self._stream.close)
            self._copied, self._done = Event(self._device), Event(self._device)
            stack.callback(self._done.close)
            stack.callback(self._copied.close)
            self._activations = DeviceMemory(self._device)
            stack.callback(self._activations.close)
            self._workspace = Workspace(self._device, self.stream)
            stack.callback(self._workspace.close)
            self._slots = {spec.name: Slot(self._device, _dtype(spec)) for spec in _said(engine)}
            for slot in self._slots.values():
                stack.callback(slot.close)
            self._context = engine.context()
            self._resources = stack.pop_all()

    @property
    def stream(self) -> int:
        """The handle of its own stream."""
        return self._stream.handle

    @property
    def workspace(self) -> Workspace:
        return self._workspace

    def bind(self, name: str, buffer: Buffer | DeviceBuffer) -> None:
        self.check_open()
        if on_device(buffer):
            self.check_name(name)
            self._device.use()
            found = borrow(buffer, self._device, stream=self.stream)
            try:
                self._check_device_array(name, found)
            except BackendError:
                found.release()
                raise
            self._retire(name)
            self._slots[name].bound = found
        else:
            self.check_buffer(name, buffer)
            self._retire(name)
            self._slots[name].bound = np.asarray(buffer)
        self._ready = False

    def unbind(self) -> None:
        if self.closed:
            return
        self._device.use()
        for name in self._slots:
            self._retire(name)
            self._slots[name].bound = None
        if self._retired:
            self._done.synchronize()
            self._give_back()
        self._ready = False

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        self._device.use()
        handle = stream or self.stream
        if not self._ready:
            self.check_bound({name: slot.bound for name, slot in self._slots.items() if slot.bound is not None})
        owners = self._wait_for_others(handle)
        if not self._ready:
            self._prepare(handle)
        self._upload(handle)
        self._check(self._engine.launch(self._context, handle), "running")
        self._download(handle)
        for owner in owners:
            self._done.hold(owner)
        if self._retired and self._done.reached():
            self._give_back()

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        self.check_open()
        self._engine.replace(weights)

    def clone(self) -> TensorRtSession:
        self.check_open()
        return TensorRtSession(self._graph, self._engine)

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

    def _wait_for_others(self, handle: int) -> set[int]:
        """Let a stream wait for the latest call's, and for those of device arrays' owners, which are returned."""
        if self._last not in (None, handle):
            self._done.hold(handle)  # one context on two streams at once is undefined (enqueueV3)
        streams = {slot.owner_stream for slot in self._slots.values()}
        owners = {stream for stream in streams if stream is not None and stream != handle}
        for owner in owners:
            order(self._device, owner, handle)
        return owners

    def _upload(self, handle: int) -> None:
        self._copied.synchronize()  # or the latest call's inputs might not have left their pinned memory
        for name in self.inputs:
            self._slots[name].upload(handle)
        self._copied.record(handle)

    def _download(self, handle: int) -> None:
        """Copy outputs to host arrays, and wait for them; device arrays alone are not waited for."""
        outputs = [self._slots[name] for name in self.outputs]
        for slot in outputs:
            slot.download(handle)
        self._done.record(handle)
        self._last = handle
        if any(slot.on_host for slot in outputs):
            self._done.synchronize()
            for slot in outputs:
                slot.finish()

    def _prepare(self, handle: int) -> None:
        """Tell the context of the shapes and addresses that have changed.

        Raises:
            EngineError: no profile takes the shapes.
            BackendError: TensorRT refuses one, or memory runs out.
        """
        shapes = {name: self._slots[name].shape for name in self.inputs}
        if shapes != self._shapes:
            self._wait()  # memory may be freed to grow
            self._shapes = None
            self._set_shapes(shapes, handle)
            self._shapes = shapes
        for name, slot in self._slots.items():
            address = slot.address()
            if address != self._addresses.get(name):
                self._check(self._context.set_tensor_address(name, address), f"binding {name}")
                self._addresses[name] = address
        self._ready = True

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

    def _wait(self) -> None:
        """For all of its work: for inputs' copies too, which a launch that failed did not wait for."""
        self._copied.synchronize()
        self._done.synchronize()

    def _check(self, done: bool, doing: str) -> None:
        if not done:
            self._shapes, self._ready = None, False
            raise self._engine.fault(doing)

    def _check_device_array(self, name: str, array: Borrowed) -> None:
        wanted = self._slots[name].dtype
        if array.dtype != wanted:
            problem = str(array.dtype)
        elif not array.contiguous:
            problem = "not contiguous"
        elif array.address % ALIGNMENT:
            problem = f"{array.address % ALIGNMENT} bytes off the alignment that TensorRT needs"
        elif array.read_only and name in self.outputs:
            problem = "read-only, and an output"
        else:
            return
        raise BackendError(
            f"{name} in device memory is {problem}",
            expected=f"contiguous {wanted}, aligned to {ALIGNMENT} bytes",
            fix="Copy it into an array of its own, in this dtype.",
        )

    def _retire(self, name: str) -> None:
        """Give a device array back, at once or when the work on it is done."""
        bound = self._slots[name].bound
        if isinstance(bound, Borrowed):
            self._retired.append(bound.release)

    def _give_back(self) -> None:
        while self._retired:
            self._retired.pop()()


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
