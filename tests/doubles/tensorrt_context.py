"""The execution context of the TensorRT double."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from doubles.cuda_memory import view
from doubles.cuda_runtime import Point
from doubles.tensorrt_engine import ICudaEngine
from doubles.tensorrt_types import ExecutionContextAllocationStrategy
from telecine.axes import Shape, bind_axes, resolve
from telecine.errors import BackendError
from telecine.manifest import TensorSpec

ALIGNMENT = 256


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine  # the bindings keep it alive too (pybind11's keep_alive on create_execution_context)
        self._strategy = strategy
        self._profile = 0  # ICudaEngine documentation: "Profile 0 is selected by default"
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._latest: Point | None = None
        self._flushed = False  # whether it was enqueued since a shape was set
        self._user = threading.Lock()

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """IExecutionContext documentation, active_optimization_profile: changing it invalidates all dynamic shapes."""
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self.engine.fail(f"there is no profile {profile_index}")
        self._profile = profile_index
        self._shapes.clear()
        self._memory, self._flushed = None, False
        # "TensorRT may require that data is copied via cudaMemcpyAsync": work that the enqueue must come after.
        self.engine.cuda.submit(stream_handle, lambda: None)
        self._latest = (stream_handle, self.engine.cuda.streams[stream_handle].issued)
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        """NvInferRuntime.h, setInputShape: the dimensions must be in the range of the selected profile."""
        limits = self.engine.plan["profiles"][self._profile].get(name)
        if limits and not all(
            low <= size <= high for low, size, high in zip(limits["min"], shape, limits["max"], strict=True)
        ):
            return self.engine.fail(f"{name}: {shape} is outside of profile {self._profile}")
        self._shapes[name] = tuple(shape)
        self._flushed = False
        self._memory = None  # update_device_memory_size_for_shapes: sizes are of the current shapes
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        sizes = bind_axes(self._specs("inputs"), self._shapes)
        return next(resolve(spec, sizes) for spec in self._specs("outputs") if spec.name == name)

    def infer_shapes(self) -> list[str]:
        missing = [spec.name for spec in self._specs("inputs") if spec.name not in self._shapes]
        if not missing:
            try:
                bind_axes(self._specs("inputs"), self._shapes)
            except BackendError as error:
                raise RuntimeError(str(error)) from error
        return missing

    def update_device_memory_size_for_shapes(self) -> int:
        """Its documentation: all input shapes and the profile must be set before."""
        if self.infer_shapes():
            self.engine.cuda.violate("update_device_memory_size_for_shapes before all input shapes are set")
            return 0
        return sum(4 * math.prod(shape) for shape in self._shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        """Its documentation: 256-byte aligned, and at least as large as the activations."""
        if memory % ALIGNMENT or size < self.update_device_memory_size_for_shapes():
            self.engine.cuda.violate("device memory for the activations is not aligned, or too small")
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """NvInferRuntime.h, setTensorAddress: "The pointer must have at least 256-byte alignment"."""
        if name not in self.engine.specs:
            return self.engine.fail(f"there is no tensor {name}")
        if memory % ALIGNMENT:
            self.engine.cuda.violate(f"the address of {name} is not aligned to {ALIGNMENT} bytes")
            return self.engine.fail(f"{name}: misaligned address")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """NvInferRuntime.h, enqueueV3: every shape and address must be set before.

        One context serves one thread at a time, and one stream: on two at once it is undefined (documentation, "How
        TensorRT Works", "Threading"; enqueueV3).
        """
        cuda = self.engine.cuda
        if not self._user.acquire(blocking=False):
            cuda.violate("two threads use one execution context at a time")
            return False
        try:
            self.engine.check_alive()
            if self._latest and not cuda.ordered(self._latest, stream_handle):
                cuda.violate("one execution context is enqueued on two streams that nothing orders")
            problem = self._incomplete()
            if problem:
                return self.engine.fail(problem)
            if cuda.capturing(stream_handle) and not self._flushed:
                # Documentation, "Performance Best Practices", "CUDA Graphs": call enqueueV3 once before the capture,
                # after a change of shapes.
                cuda.violate("an execution context is captured before it was enqueued in these shapes")
            self._flushed = True
            self._launch(stream_handle)
            return True
        finally:
            self._user.release()

    def _incomplete(self) -> str | None:
        missing = self.infer_shapes() or [name for name in self.engine.specs if not self._addresses.get(name)]
        if missing:
            return f"shapes or addresses are not set: {', '.join(missing)}"
        if self._strategy == ExecutionContextAllocationStrategy.USER_MANAGED and self._memory is None:
            return "no device memory was set for the current shapes"
        if self.engine.stripped:
            return "the weights of a stripped engine were not refitted"
        return None

    def _launch(self, stream: int) -> None:
        """Give the stream the graph; buffers are those of now, their content is that of then."""
        engine, cuda = self.engine, self.engine.cuda
        inputs = {
            spec.name: (spec, self._addresses[spec.name], self._shapes[spec.name]) for spec in self._specs("inputs")
        }
        outputs = {
            spec.name: (spec, self._addresses[spec.name], self.get_tensor_shape(spec.name))
            for spec in self._specs("outputs")
        }
        scratch = [self._memory] if self._memory else []

        def run() -> None:
            engine.pending -= 1
            for address, size in scratch:
                view(address, size).fill(0xAB)  # activations: nobody else may keep anything there
            dtypes = engine.plan["graph_dtypes"]
            feeds = {name: _array(*place).astype(dtypes[name]) for name, place in inputs.items()}
            results = engine.network.run(feeds)
            for name, (spec, address, shape) in outputs.items():
                assert results[name].shape == shape, (name, results[name].shape, shape)
                cuda.write(address, np.frombuffer(results[name].astype(spec.dtype).tobytes(), np.uint8))

        def given() -> None:
            engine.pending += 1

        reads = [_region(*place) for place in inputs.values()]
        cuda.submit(stream, run, reads, [*scratch, *(_region(*place) for place in outputs.values())], given=given)
        self._latest = (stream, cuda.streams[stream].issued)

    def _specs(self, kind: str) -> list[TensorSpec]:
        return [
            TensorSpec(name=spec["name"], dtype=spec["dtype"], shape=tuple(spec["shape"]))
            for spec in self.engine.plan[kind]
        ]


def _region(spec: TensorSpec, address: int, shape: Shape) -> tuple[int, int]:
    return address, math.prod(shape) * np.dtype(spec.dtype).itemsize


def _array(spec: TensorSpec, address: int, shape: Shape) -> np.ndarray[Any, Any]:
    return view(*_region(spec, address, shape)).view(spec.dtype).reshape(shape).copy()
