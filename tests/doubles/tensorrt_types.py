"""Enumerations and small classes of the TensorRT double, under the real ones' names."""

from __future__ import annotations

import enum


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8

    @property
    def itemsize(self) -> int:
        return ITEM_SIZES[self]


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class SerializationFlag(enum.Enum):
    EXCLUDE_WEIGHTS = 0
    EXCLUDE_LEAN_RUNTIME = 1
    INCLUDE_REFIT = 2


class SerializationFlag10(enum.Enum):
    """Before 10.14: what was refitted is final once it is written."""

    EXCLUDE_WEIGHTS = 0
    EXCLUDE_LEAN_RUNTIME = 1


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE
    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Weights:
    """Values at an address: nothing is copied, so they must live until the refit is done."""

    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self.dtype, self.ptr, self.size = type, ptr, count

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


TYPES = {
    "float32": DataType.FLOAT, "float16": DataType.HALF, "int32": DataType.INT32, "int64": DataType.INT64,
    "uint8": DataType.UINT8,
}  # fmt: skip
ITEM_SIZES = {
    DataType.FLOAT: 4, DataType.HALF: 2, DataType.BF16: 2, DataType.INT8: 1, DataType.INT32: 4, DataType.BOOL: 1,
    DataType.UINT8: 1, DataType.FP8: 1, DataType.INT64: 8,
}  # fmt: skip
# By the numbers of ONNX's TensorProto.DataType.
ONNX_TYPES = {
    1: DataType.FLOAT, 2: DataType.UINT8, 3: DataType.INT8, 6: DataType.INT32, 7: DataType.INT64, 9: DataType.BOOL,
    10: DataType.HALF, 16: DataType.BF16, 17: DataType.FP8,
}  # fmt: skip
