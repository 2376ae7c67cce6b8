"""A plan in device memory: deserialised once, run by the contexts of a session and its clones, refitted."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import out_of_memory
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.graph import Launches
from telecine.backends.tensorrt.library import Library
from telecine.backends.tensorrt.opening import Plan, checked_content
from telecine.backends.tensorrt.refit import BundleWeights, prepare
from telecine.backends.tensorrt.runtime_cache import RuntimeCache
from telecine.engine import Sidecar
from telecine.errors import BackendError, EngineError
from telecine.initializers import check_weights

# What TensorRT says when it cannot allocate.
OUT_OF_MEMORY = ("out of memory", "outofmemory", "failed to allocate", "insufficient memory")


class Engine:
    """A deserialised plan; it is freed when the last of those who `hold` it has let go.

    What is not allowed at the same time takes `lock`: launching work, and refitting.
    """

    def __init__(
        self, plan: Plan, device: Device, weights: BundleWeights, *, streaming_budget: int | None = None
    ) -> None:
        """`streaming_budget`: bytes of weights on the device, where the plan streams the others; None: TensorRT's."""
        self.sidecar: Sidecar = plan.sidecar
        self.library: Library = plan.library
        self.device = device
        self.lock = threading.Lock()
        self._weights = weights
        self._replaced: frozenset[str] = frozenset()
        self._mixed = False  # whether a refit failed midway
        self._refits = 0
        self._holders = 0
        trt = plan.library.module
        # It must live as long as the engine (TensorRT documentation, "How TensorRT Works", "Object Lifetimes").
        self._runtime: Any = trt.Runtime(plan.library.log)
        self._engine: Any = self._deserialise(plan)
        self._cache = RuntimeCache(plan) if plan.library.is_rtx else None
        self._prepare(plan, streaming_budget)

    def hold(self) -> Engine:
        with self.lock:
            self._holders += 1
        return self

    def let_go(self) -> None:
        with self.lock:
            self._holders -= 1
            if self._holders:
                return
        self.device.use()
        if self._cache:
            self._cache.save()
        self._cache = self._engine = self._runtime = None  # in this order: bindings free what nobody refers to

    def context(self, *, cuda_graphs: bool = False) -> Any:
        """A new execution context, which is given its activations' memory by its session.

        `cuda_graphs`: TensorRT for RTX captures its launches itself.

        Raises:
            BackendError: TensorRT failed; out of memory says so.
        """
        trt = self.library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.device.use()
        if self._cache:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if cuda_graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._cache.attach(config)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self.fault("making an execution context")
        return context

    def replace(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Give the named initializers these values, and every other one the bundle's own.

        What is refused changes nothing; where TensorRT fails midway, nothing runs until a replacement succeeds.

        Raises:
            BackendError: an unknown name, another shape or dtype, or TensorRT failed.
            EngineError: the plan cannot be refitted.
        """
        if not self.sidecar.refit:
            raise EngineError(
                f"the engine of {self.sidecar.component} was built without refit",
                expected="one whose weights can be replaced",
                fix="Run: telecine build BUNDLE --refit, or use backend='onnxruntime'.",
            )
        names = frozenset(weights)
        check_weights(weights, self._weights.initializers)
        # Not ascontiguousarray: it makes a scalar a vector.
        values = {name: np.require(array, requirements="C") for name, array in weights.items()}
        values |= self._weights.read(self._replaced - names)
        with self.lock:
            self.device.synchronize()  # refitting under pending work is undefined: refit_cuda_engine's documentation
            refitter = prepare(self.library, self._engine, values, self._weights)
            self._mixed, self._replaced = True, self._replaced | names
            self._refits += 1  # what was captured before has the old weights' places
            refitter.apply()
            self._mixed, self._replaced = False, names

    def launch(self, context: Any, stream: int, launches: Launches, key: Hashable) -> bool:
        """Enqueue a context, unless the engine is being refitted, for which it waits. `key`: of its addresses.

        Raises:
            BackendError: a refit failed midway.
        """
        with self.lock:
            if self._mixed:
                raise BackendError(
                    f"the engine of {self.sidecar.component} has a mixture of weights: replacing them failed",
                    expected="weights of one model",
                    fix="Replace them again, or load the bundle again.",
                )
            plain = partial(_execute, context, stream)
            return launches.launch((self._refits, key), stream, plain)

    def fault(self, doing: str) -> BackendError:
        """What TensorRT's log says of a call that failed."""
        text = self.library.errors()
        if any(words in text.lower() for words in OUT_OF_MEMORY):
            return out_of_memory(f"TensorRT, {doing}: {text}")
        return BackendError(
            f"TensorRT failed {doing}: {text}",
            expected="an engine that this machine runs",
            fix="Run: telecine doctor; then telecine build BUNDLE.",
        )

    def _deserialise(self, plan: Plan) -> Any:
        self.device.use()
        with checked_content(plan) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            fault = self.fault(f"deserialising {plan.path}")
            raise EngineError(fault.got, expected=fault.expected, fix=fault.fix)
        return engine

    def _prepare(self, plan: Plan, streaming_budget: int | None) -> None:
        """Check the plan's inputs and outputs against its sidecar; stream and fill in its weights."""
        trt, engine, sidecar = self.library.module, self._engine, self.sidecar
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        said = {spec.name: spec for spec in (*sidecar.inputs, *sidecar.outputs)}
        on_host = [name for name in names if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE]
        wrong = [
            name
            for name, spec in said.items()
            if name in names and engine.get_tensor_dtype(name) != self.library.data_type(spec.dtype)
        ]
        if set(names) != set(said) or wrong or on_host or engine.num_optimization_profiles != len(sidecar.profiles):
            raise EngineError(
                f"{plan.path} has inputs and outputs {', '.join(names)} and {engine.num_optimization_profiles} profiles"
                + (f"; of another dtype: {', '.join(wrong)}" if wrong else "")
                + (f"; on the host: {', '.join(on_host)}" if on_host else ""),
                expected=f"what its sidecar says: {', '.join(said)}, {len(sidecar.profiles)} profiles",
                fix="Run: telecine build BUNDLE",
            )
        if sidecar.weight_streaming:  # before any context is made: the budget sizes them
            engine.weight_streaming_budget_v2 = (
                engine.get_weight_streaming_automatic_budget()
                if streaming_budget is None
                else min(streaming_budget, engine.streamable_weights_size)
            )
        if sidecar.stripped:
            prepare(self.library, engine, {}, self._weights, everything=True).apply()


def _execute(context: Any, stream: int) -> bool:
    return bool(context.execute_async_v3(stream))
