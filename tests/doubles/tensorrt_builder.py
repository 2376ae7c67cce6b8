"""The builder half of the TensorRT double: it records what it is asked, and refuses what TensorRT refuses.

A plan is JSON of what it was built with, and of what the other half runs (`plans`). Class, method and parameter names
are those of the bindings (test_double_names.py compares them); each rule says where NVIDIA states it, in the Python API
reference (docs.nvidia.com/deeplearning/tensorrt, "API") unless it says so.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_types import ONNX_TYPES, DataType, ILogger, Severity

# Compute capabilities that plans of HardwareCompatibilityLevel.AMPERE_PLUS run on.
AMPERE_PLUS = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0")
ENDS = ("min", "opt", "max")
# NumPy's names.
DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class BuilderFlag(enum.IntEnum):
    REFIT = 2
    TF32 = 5
    VERSION_COMPATIBLE = 9
    EXCLUDE_LEAN_RUNTIME = 10
    STRIP_PLAN = 13
    REFIT_IDENTICAL = 14
    WEIGHT_STREAMING = 15


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class LayerType(enum.Enum):
    CONSTANT = 0
    ATTENTION_INPUT = 1
    CAST = 2  # every other node


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType, axes: tuple[str, ...] = ()) -> None:
        self.name, self.shape, self.dtype, self._axes = name, shape, dtype, axes

    def get_dimension_name(self, index: int) -> str:
        return self._axes[index]


class IAttention:
    decomposable = False


class ILayer:
    def __init__(self, kind: LayerType, inputs: list[ITensor | None], outputs: list[ITensor]) -> None:
        self.type, self._inputs, self._outputs, self._attention = kind, inputs, outputs, IAttention()

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class IAttentionInputLayer(ILayer):
    """`INetworkDefinition.get_layer` gives an ILayer: its class must be changed to get here, as in C++ by a cast."""

    @property
    def attention(self) -> IAttention:
        return self._attention


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._strongly_typed = bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []
        self._path: Path | None = None

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class ParserError:
    def desc(self) -> str:
        return "this is no ONNX graph"


class OnnxParser:
    """Nodes become layers, one each; what they hand on is typed where the graph says so, and float elsewhere."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, 0

    @property
    def num_errors(self) -> int:
        return self._errors

    def get_error(self, index: int) -> ParserError:
        assert index < self._errors
        return ParserError()

    def parse_from_file(self, model: str) -> bool:
        try:
            graph = onnx.load(model, load_external_data=False).graph
        except Exception:  # noqa: BLE001 - protobuf's own kind of error depends on its implementation
            self._errors = 1
            return False
        network = self._network
        network._path = Path(model).resolve()
        network._inputs = [_tensor(value) for value in graph.input]
        known = {value.name: _tensor(value) for value in (*graph.value_info, *graph.output)}
        known |= {tensor.name: tensor for tensor in network._inputs}
        network._outputs = [known[value.name] for value in graph.output]
        for node in graph.node:
            kind = {"Constant": LayerType.CONSTANT, "Attention": LayerType.ATTENTION_INPUT}.get(
                node.op_type, LayerType.CAST
            )
            outputs = [known.setdefault(name, ITensor(name, (1,), DataType.FLOAT)) for name in node.output if name]
            network._layers.append(ILayer(kind, [known.get(name) for name in node.input], outputs))
        return True


def _tensor(value: Any) -> ITensor:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return ITensor(
        value.name, shape, ONNX_TYPES[value.type.tensor_type.elem_type], tuple(dim.dim_param for dim in dims)
    )


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        # "inputs can be validated only partially; a full validation is performed at engine build time": it does not
        # raise, tried with TensorRT for RTX 1.7.
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return self._shapes[input]

    def __bool__(self) -> bool:
        """IOptimizationProfile.set_shape, condition (2): 0 <= min <= opt <= max in every axis."""
        return all(
            0 <= low <= usual <= high
            for shapes in self._shapes.values()
            for low, usual, high in zip(*shapes, strict=True)
        )


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b" measured"


class IBuilderConfig:
    def __init__(self) -> None:
        # BuilderFlag.TF32: "This is enabled by default."
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._pools: dict[MemoryPoolType, int] = {}
        self._timing_cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """IBuilderConfig.add_optimization_profile: the index, or -1 "if the input profile is not valid"."""
        if not profile:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """IBuilderConfig.set_timing_cache: a cache of another device is refused unless `ignore_mismatch`."""
        if b"another GPU" in cache._content and not ignore_mismatch:
            return False
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing_cache


class IHostMemory(bytes):
    """What a build returns: bytes by the buffer protocol."""


class Builder:
    """`cuda` and `version` are set for each module that is made (`tensorrt_module`)."""

    cuda: CudaDouble
    version: str

    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        problem = self._problem(network, config)
        if problem:
            self._logger.log(Severity.ERROR, problem)
            return None
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                # IProgressMonitor.step_complete: False "if TensorRT should cancel the build as soon as possible".
                if not monitor.step_complete("Building engine", step):
                    return None
            monitor.phase_finish("Building engine")
        return IHostMemory(json.dumps(self._record(network, config)).encode())

    def _problem(self, network: INetworkDefinition, config: IBuilderConfig) -> str | None:
        if self.version.startswith("10.") and not network._strongly_typed:
            # Developer guide, "Strongly-Typed Networks": without it TensorRT chooses the types of tensors itself.
            return "this network is weakly typed"
        if BuilderFlag.EXCLUDE_LEAN_RUNTIME in config._flags and BuilderFlag.VERSION_COMPATIBLE not in config._flags:
            # BuilderFlag.EXCLUDE_LEAN_RUNTIME: "This flag is ignored if the VERSION_COMPATIBLE flag is not set."
            return "EXCLUDE_LEAN_RUNTIME without VERSION_COMPATIBLE would be ignored"
        if BuilderFlag.STRIP_PLAN in config._flags and not config._flags & {
            BuilderFlag.REFIT,
            BuilderFlag.REFIT_IDENTICAL,
        }:
            # Developer guide, "Weight-Stripped Engine Generation": only weights that can be refitted are stripped.
            return "STRIP_PLAN without REFIT or REFIT_IDENTICAL"
        for tensor in network._inputs:
            for profile in config._profiles:
                if wrong := _profile_problem(tensor, profile):
                    return wrong
        if not config._profiles and any(-1 in tensor.shape for tensor in network._inputs):
            # IOptimizationProfile: with dynamic inputs "users need to specify at least one optimization profile".
            return "dynamic inputs and no optimization profile"
        return None

    def _record(self, network: INetworkDefinition, config: IBuilderConfig) -> Mapping[str, Any]:
        attention = [layer._attention for layer in network._layers if layer.type == LayerType.ATTENTION_INPUT]
        return {
            **self._to_run(network, config),
            "flags": sorted(flag.name for flag in config._flags),
            "pools": {pool.name: size for pool, size in config._pools.items()},
            "builder_optimization_level": config.builder_optimization_level,
            "max_aux_streams": config.max_aux_streams,
            "hardware_compatibility_level": config.hardware_compatibility_level.name,
            "strongly_typed": network._strongly_typed,
            "attention": [each.decomposable for each in attention],
        }

    def _to_run(self, network: INetworkDefinition, config: IBuilderConfig) -> Mapping[str, Any]:
        """What the other half of the double runs."""
        flags = {flag.name for flag in config._flags}
        ampere = config.hardware_compatibility_level == HardwareCompatibilityLevel.AMPERE_PLUS
        return {
            "graph": str(network._path),
            "version": self.version,
            "capabilities": list(AMPERE_PLUS) if ampere else [self.cuda.capabilities[self.cuda.current]],
            "inputs": [_spec(tensor) for tensor in network._inputs],
            "outputs": [_spec(tensor) for tensor in network._outputs],
            "graph_dtypes": {tensor.name: DTYPES[tensor.dtype.name] for tensor in network._inputs},
            "profiles": [
                {
                    name: dict(zip(("min", "opt", "max"), shapes, strict=True))
                    for name, shapes in profile._shapes.items()
                }
                for profile in config._profiles
            ],
            "weights": {},
            "refit": bool(flags & {"REFIT", "REFIT_IDENTICAL"}),
            "stripped": "STRIP_PLAN" in flags,
            "weight_streaming": "WEIGHT_STREAMING" in flags,
            "version_compatible": "VERSION_COMPATIBLE" in flags,
            "host_code": "VERSION_COMPATIBLE" in flags and "EXCLUDE_LEAN_RUNTIME" not in flags,
        }


def _spec(tensor: ITensor) -> Mapping[str, Any]:
    shape = [axis or side for axis, side in zip(tensor._axes, tensor.shape, strict=True)]
    return {"name": tensor.name, "dtype": DTYPES[tensor.dtype.name], "shape": shape}


def _profile_problem(tensor: ITensor, profile: IOptimizationProfile) -> str | None:
    """IOptimizationProfile.set_shape, conditions (1) and (3)."""
    shapes = profile._shapes.get(tensor.name)
    if shapes is None:
        return f"the profile has no shapes of {tensor.name}" if -1 in tensor.shape else None
    for shape in shapes:
        if len(shape) != len(tensor.shape) or any(
            fixed not in (-1, side) for fixed, side in zip(tensor.shape, shape, strict=True)
        ):
            return f"{tensor.name} is {tensor.shape}, in the profile {shape}"
    return None


CLASSES: tuple[type, ...] = (
    IProgressMonitor, BuilderFlag, NetworkDefinitionCreationFlag, HardwareCompatibilityLevel, MemoryPoolType, LayerType,
    ITensor, IAttention, ILayer, IAttentionInputLayer, INetworkDefinition, ParserError, OnnxParser,
    IOptimizationProfile, ITimingCache, IBuilderConfig, IHostMemory, Builder,
)  # fmt: skip


def read_plan(path: Path) -> dict[str, Any]:
    """What a plan of this builder was built with."""
    return dict(json.loads(path.read_bytes()))
