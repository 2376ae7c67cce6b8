"""Runtime, engine and refitter of the TensorRT double. A plan is a JSON file that names an ONNX graph (`plans`).

Each rule is NVIDIA's; a broken one is kept in the CUDA double's `violations`, or makes the call fail as the real one's.
"""

from __future__ import annotations

import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_network import Network
from doubles.tensorrt_types import (
    TYPES,
    CudaGraphStrategy,
    DataType,
    ExecutionContextAllocationStrategy,
    ILogger,
    LayerInformationFormat,
    TensorLocation,
    Weights,
)

STREAMABLE = 1 << 20


class Runtime:
    """`cuda`, `library`, `version` and `engine_class` are set for each module that is made (`tensorrt_module`)."""

    cuda: CudaDouble
    library: str
    version: str
    engine_class: type[ICudaEngine]

    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        """None where the plan is not one that it opens, as the real one."""
        plan = json.loads(bytes(serialized_engine))
        capability = self.cuda.capabilities[self.cuda.current]
        # Documentation, "Version Compatibility": by default the version that built it; the lean runtime opens
        # version-compatible plans of other versions, the full one those that carry a lean runtime (these do not).
        if plan["version"] != self.version and (self.library == "tensorrt" or not plan["version_compatible"]):
            return self._refuse("the engine plan file is not compatible with this version of TensorRT")
        if plan["host_code"] and not self.engine_host_code_allowed:
            return self._refuse("the plan contains host code, which is not allowed")
        if self.library == "tensorrt_lean" and not plan["version_compatible"]:
            return self._refuse("the lean runtime opens version-compatible plans only")
        if capability not in plan["capabilities"]:
            return self._refuse(f"the engine was built for other devices than compute capability {capability}")
        return self.engine_class(self, plan)

    def _refuse(self, why: str) -> None:
        self.logger.log(ILogger.ERROR, why)


class ICudaEngine:
    context_class: type[Any]

    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self._runtime = weakref.ref(runtime)
        self.cuda, self.logger, self.plan = runtime.cuda, runtime.logger, plan
        self.network = Network(plan["graph"], {name: bytes.fromhex(each) for name, each in plan["weights"].items()})
        self.stripped = plan["stripped"]
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self._budget = STREAMABLE if plan["weight_streaming"] else 0
        self.pending = 0  # launches that have not run yet

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    @property
    def refittable(self) -> bool:
        return bool(self.plan["refit"])

    @property
    def streamable_weights_size(self) -> int:
        return STREAMABLE if self.plan["weight_streaming"] else 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        """NvInferRuntime.h, setWeightStreamingBudgetV2: not while an execution context of the engine exists."""
        if self.contexts or not self.plan["weight_streaming"]:
            self.cuda.violate("the weight streaming budget is set with contexts alive, or without weight streaming")
        self._budget = budget

    def get_weight_streaming_automatic_budget(self) -> int:
        return STREAMABLE // 2

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self.specs[name]["dtype"]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Any:
        self.check_alive()
        context = self.context_class(self, strategy)
        self.contexts.add(context)
        return context

    def create_engine_inspector(self) -> EngineInspector:
        self.check_alive()
        return EngineInspector(self.plan)

    def create_serialization_config(self) -> SimpleNamespace:
        flags: set[Any] = set()
        return SimpleNamespace(flags=flags, set_flag=flags.add)

    def serialize_with_config(self, arg0: SimpleNamespace) -> bytes:
        """SerializationFlag: INCLUDE_REFIT keeps a plan refittable; of a version-compatible one the lean runtime is
        kept unless EXCLUDE_LEAN_RUNTIME, as host code."""
        self.check_alive()
        flags = {flag.name for flag in arg0.flags}
        return json.dumps(
            self.plan
            | {
                "weights": {name: values.hex() for name, values in self.network.given.items()},
                "stripped": self.stripped,
                "refit": self.refittable and "INCLUDE_REFIT" in flags,
                "host_code": self.plan["version_compatible"] and "EXCLUDE_LEAN_RUNTIME" not in flags,
            }
        ).encode()

    @property
    def specs(self) -> dict[str, Any]:
        return {spec["name"]: spec for spec in (*self.plan["inputs"], *self.plan["outputs"])}

    def check_alive(self) -> None:
        """Documentation, "How TensorRT Works", "Object Lifetimes": the runtime outlives its engines."""
        if self._runtime() is None:
            self.cuda.violate("an engine is used after its Runtime is gone")

    def fail(self, why: str) -> bool:
        self.logger.log(ILogger.ERROR, why)
        return False


class EngineInspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        """IEngineInspector: with ProfilingVerbosity.LAYER_NAMES_ONLY, the default, layers are names."""
        assert format == LayerInformationFormat.JSON
        fused = [f"_gemm_mha_v2_myl0_{index}" for index in range(len(self._plan["attention"]))]
        return json.dumps({"Layers": ["__myl_Cast_myl0_0", *fused], "Bindings": []})


class ICudaEngine10(ICudaEngine):
    """With what 11 dropped, as 10.9 has it."""

    @property
    def device_memory_size(self) -> int:
        return STREAMABLE

    @property
    def weight_streaming_budget(self) -> int:
        return self._budget

    def create_execution_context_without_device_memory(self) -> Any:
        return self.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)


class IRuntimeCache:
    """Here it counts the contexts that were compiled with it, to see that it is kept."""

    def __init__(self) -> None:
        self.compiled = 0

    def deserialize(self, blob: bytes) -> bool:
        head, _, count = bytes(blob).partition(b":")
        if head != b"double":
            return False
        self.compiled = int(count)
        return True

    def serialize(self) -> bytes:
        return f"double:{self.compiled}".encode()


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self.strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self.cache


class ICudaEngineRtx(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        cache = runtime_config.get_runtime_cache()
        if cache is not None:
            cache.compiled += 1
        context = super().create_execution_context(runtime_config.get_execution_context_allocation_strategy())
        context.config = runtime_config
        return context


class Refitter:
    """A weight and its bias are taken as joined: TensorRT then asks for both (Refitter.get_missing_weights)."""

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine, self._logger = engine, logger
        self._sizes = engine.network.weights()
        self._set: dict[str, Weights] = {}
        if not engine.refittable:
            engine.fail("the engine was not built with the REFIT flag")

    def get_all_weights(self) -> list[str]:
        return list(self._sizes) if self._engine.refittable else []

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        """Its documentation: rejected for an unknown name, another size or another dtype."""
        if name not in self._sizes or (weights.dtype, weights.nbytes) != self._sizes[name]:
            return self._engine.fail(f"{name}: no such weights, or of another type or size")
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        wanted = set(self._sizes) if self._engine.stripped else {_partner(name) for name in self._set}
        return sorted((wanted & set(self._sizes)) - set(self._set))

    def refit_cuda_engine(self) -> bool:
        """Its documentation: undefined with pending work; false while weights are missing."""
        if self._engine.pending:
            self._engine.cuda.violate("an engine is refitted with work pending")
        if self.get_missing_weights():
            return self._engine.fail(f"missing weights: {', '.join(self.get_missing_weights())}")
        self._engine.network.give(
            {name: np.array(view(each.ptr, each.nbytes)).tobytes() for name, each in self._set.items()}
        )
        self._engine.stripped = False
        return True


def _partner(name: str) -> str:
    head, _, kind = name.rpartition(".")
    return f"{head}.{'bias' if kind == 'weight' else 'weight'}"
