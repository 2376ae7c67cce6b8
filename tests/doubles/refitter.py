"""TensorRT's refitting in software: a plan is JSON with the bytes of its weights, by name.

Names and their order of arguments are those of the bindings (test_refit.py compares them). Each rule is one of NVIDIA's
API reference, Refitter and ICudaEngine: values are read at their addresses when the engine is refitted, not before;
weights of another type or size are refused; what was not set and is joined with what was is missing; an engine
without REFIT has no weights to set.
"""

from __future__ import annotations

import ctypes
import enum
import json
from types import ModuleType, SimpleNamespace
from typing import Any

VERSION = "11.4.0.106"
SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "FP8": 1, "INT8": 1, "INT32": 4, "INT64": 8, "UINT8": 1, "BOOL": 1}
DataType = enum.Enum("DataType", list(SIZES))


class SerializationFlag(enum.Enum):
    EXCLUDE_WEIGHTS = 0
    EXCLUDE_LEAN_RUNTIME = 1
    INCLUDE_REFIT = 2


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1

    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Weights:
    """Values at an address: nothing is copied."""

    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self.dtype, self.pointer, self.size = type, ptr, count

    @property
    def nbytes(self) -> int:
        return self.size * SIZES[self.dtype.name]


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        plan = json.loads(serialized_engine)
        if plan["host_code"] and not self.engine_host_code_allowed:
            self._logger.log(ILogger.ERROR, "the plan contains host code")
            return None
        return Engine(plan)


class Engine:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan

    def create_serialization_config(self) -> SimpleNamespace:
        flags: set[SerializationFlag] = set()
        return SimpleNamespace(flags=flags, set_flag=flags.add)

    def serialize_with_config(self, config: SimpleNamespace) -> bytes:
        refit = self.plan["refit"] and SerializationFlag.INCLUDE_REFIT in config.flags
        host_code = self.plan["host_code"] and SerializationFlag.EXCLUDE_LEAN_RUNTIME not in config.flags
        return json.dumps(self.plan | {"refit": refit, "host_code": host_code}).encode()


class Refitter:
    def __init__(self, engine: Engine, logger: ILogger) -> None:
        self._plan, self._logger = engine.plan, logger
        self._set: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._plan["weights"]) if self._plan["refit"] else []

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        kind, values = self._plan["weights"][name]
        if (weights.dtype.name, weights.nbytes) != (kind, len(values) // 2):
            self._logger.log(ILogger.ERROR, f"{name}: {weights.dtype.name} of {weights.nbytes} bytes, not {kind}")
            return False
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        """A layer's weight and bias are taken as joined."""
        layers = {name.rpartition(".")[0] for name in self._set}
        return [name for name in self.get_all_weights() if name.rpartition(".")[0] in layers and name not in self._set]

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        for name, weights in self._set.items():
            values = ctypes.string_at(weights.pointer, weights.nbytes).hex()
            self._plan["weights"][name] = [weights.dtype.name, values]
        return True


def make_plan(weights: dict[str, tuple[str, bytes]], *, refit: bool = True, host_code: bool = False) -> bytes:
    """A plan with these weights: (DataType's name, bytes) by name."""
    content = {name: [kind, values.hex()] for name, (kind, values) in weights.items()}
    return json.dumps({"weights": content, "refit": refit, "host_code": host_code}).encode()


def make_module(name: str = "tensorrt") -> ModuleType:
    module = ModuleType(name)
    for member in (DataType, SerializationFlag, ILogger, Weights, Runtime, Refitter):
        setattr(module, member.__name__, member)
    module.__version__ = VERSION  # type: ignore[attr-defined]
    return module
