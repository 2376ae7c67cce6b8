"""Modules of the TensorRT double: `tensorrt` 10 and 11, `tensorrt_lean`, `tensorrt_rtx`."""

from __future__ import annotations

from types import ModuleType

from doubles import tensorrt_builder, tensorrt_types
from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_context import IExecutionContext
from doubles.tensorrt_engine import (
    EngineInspector,
    ICudaEngine,
    ICudaEngine10,
    ICudaEngineRtx,
    IRuntimeCache,
    IRuntimeConfig,
    Refitter,
    Runtime,
)

VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_lean": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}
SHARED = (
    "DataType", "TensorLocation", "ExecutionContextAllocationStrategy", "ILogger", "Weights", "LayerInformationFormat",
)  # fmt: skip


def make_tensorrt(cuda: CudaDouble, name: str = "tensorrt", version: str | None = None) -> ModuleType:
    """A module that stands in for a TensorRT package, on a CUDA double."""
    module = ModuleType(name)
    version = version or VERSIONS[name]
    old, rtx = version.startswith("10."), name == "tensorrt_rtx"
    base = ICudaEngineRtx if rtx else ICudaEngine10 if old else ICudaEngine
    engine = type("ICudaEngine", (base,), {"context_class": IExecutionContext})
    runtime = type("Runtime", (Runtime,), {"cuda": cuda, "library": name, "version": version, "engine_class": engine})
    members = {each: getattr(tensorrt_types, each) for each in SHARED}
    members |= {"Runtime": runtime, "ICudaEngine": engine, "IExecutionContext": IExecutionContext, "Refitter": Refitter}
    final = old and int(version.split(".")[1]) < 14
    members["EngineInspector"] = EngineInspector
    members["SerializationFlag"] = getattr(tensorrt_types, "SerializationFlag10" if final else "SerializationFlag")
    if name == "tensorrt":
        members |= {each.__name__: each for each in tensorrt_builder.CLASSES}
        members["Builder"] = type("Builder", (tensorrt_builder.Builder,), {"cuda": cuda, "version": version})
    if rtx:
        members |= {"IRuntimeConfig": IRuntimeConfig, "IRuntimeCache": IRuntimeCache}
        members["CudaGraphStrategy"] = tensorrt_types.CudaGraphStrategy
    for each, value in members.items():
        setattr(module, each, value)
    module.__version__ = version  # type: ignore[attr-defined]
    return module
