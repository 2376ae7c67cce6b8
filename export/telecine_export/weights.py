"""Stream a checkpoint's tensors into a component's `weights.bin`, one at a time, hashed as they are written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import onnx_ir as ir
import torch
from torch import Tensor

from telecine.errors import SourceError
from telecine.families.names import TIED_NAMES
from telecine.initializers import TRANSPOSED
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.precision.channel_scales import channel_scales, to_fp8
from telecine_export.precision.quantise import FP8, SCALE_OF, SCALE_TYPE

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
# Large tensors start on a page, so that a backend can map them; small ones on a cache line.
PAGE, CACHE_LINE, LARGE = 4096, 64, 1 << 16
# Types and layouts change a piece at a time: T5-XXL's embedding alone is 0.5 GB in float32.
PIECE = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    path: Path
    size: int
    sha256: str
    parameters: int


class WeightsWriter:
    """One component's external data. Every graph of the component refers into it; a tensor is written once."""

    def __init__(self, path: Path, checkpoint: Checkpoint, *, progress: Callable[[int], None]) -> None:
        self._path, self._checkpoint, self._progress = path, checkpoint, progress
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._written: dict[tuple[str, bool, ir.DataType], ir.ExternalTensor] = {}
        self._parameters: dict[str, int] = {}
        self._scale: dict[tuple[str, ir.DataType], Tensor] = {}

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    def attach(self, model: ir.Model) -> None:
        """Give every initializer that awaits a value its bytes in the file.

        Raises:
            SourceError: the checkpoint lacks a tensor, or has it in another shape.
        """
        for value in model.graph.initializers.values():
            if value.const_value is None:
                value.const_value = self._write(value)

    def finish(self) -> WeightsFile:
        """Size, hash and number of parameters of what was written."""
        return WeightsFile(
            path=self._path,
            size=self._file.tell(),
            sha256=self._hash.hexdigest(),
            parameters=sum(self._parameters.values()),
        )

    def _write(self, value: ir.Value) -> ir.ExternalTensor:
        assert value.name
        assert value.dtype
        assert value.shape is not None
        transposed = TRANSPOSED in value.metadata_props
        key = (value.name, transposed, value.dtype)
        if key not in self._written:
            if SCALE_OF in value.metadata_props:
                tensor = self._scales(value.metadata_props[SCALE_OF], transposed, value.dtype)
            else:
                tensor = self._read(value.name, list(value.shape.numpy()), transposed)
                self._parameters[value.name] = tensor.numel()
            offset = self._align(tensor.numel() * value.dtype.bitwidth // 8)
            if value.dtype == FP8:
                scale_type = ir.DataType[value.metadata_props[SCALE_TYPE]]
                self._stream(tensor, torch.float8_e4m3fn, self._scales(value.name, transposed, scale_type))
            else:
                self._stream(tensor, TORCH_DTYPES[value.dtype])
            self._written[key] = ir.ExternalTensor(
                location=self._path.name,
                offset=offset,
                length=self._file.tell() - offset,
                dtype=value.dtype,
                shape=ir.Shape(tensor.shape),
                name=value.name,
                base_dir=self._path.parent,
            )
        return self._written[key]

    def _scales(self, name: str, transposed: bool, dtype: ir.DataType) -> Tensor:
        """(outputs,) scales of a weight that is stored in FP8, kept for when both have been written."""
        if (name, dtype) not in self._scale:
            stored = self._checkpoint.shape(self._stored_name(name))
            weight = self._read(name, list(stored[::-1] if transposed else stored), transposed)
            self._scale[name, dtype] = channel_scales(weight, TORCH_DTYPES[dtype])
        return self._scale[name, dtype]

    def _stored_name(self, name: str) -> str:
        tied = TIED_NAMES.get(name, name)
        return tied if name not in self._checkpoint and tied in self._checkpoint else name

    def _read(self, name: str, shape: list[int], transposed: bool) -> Tensor:
        name = self._stored_name(name)
        tensor = self._checkpoint.load(name)
        expected = shape[::-1] if transposed else shape
        if list(tensor.shape) != expected:
            raise SourceError(
                f"tensor {name} of {self._checkpoint.origin} has shape {list(tensor.shape)}",
                expected=f"{expected}, as its config.json says",
                fix="The weights and the config.json are of different models: download both again.",
            )
        if tensor.dtype not in TORCH_DTYPES.values():  # float8 too: its scales live elsewhere
            raise SourceError(
                f"tensor {name} of {self._checkpoint.origin} is {tensor.dtype}",
                expected="float32, float16 or bfloat16",
                fix="Save the model unquantised.",
            )
        return tensor.T if transposed else tensor

    def _align(self, size: int) -> int:
        boundary = PAGE if size >= LARGE else CACHE_LINE
        self._put(b"\0" * (-self._file.tell() % boundary))
        return self._file.tell()

    def _stream(self, tensor: Tensor, dtype: torch.dtype, scales: Tensor | None = None) -> None:
        """Write the tensor row-major in `dtype` (FP8 by its `scales`), a bounded piece at a time."""
        if tensor.ndim == 0:
            tensor = tensor[None]
        values = PIECE if scales is None else PIECE // 4  # FP8 is computed in float32
        rows = max(1, values // max(1, tensor[0].numel()))
        for start in range(0, tensor.shape[0], rows):
            part = tensor[start : start + rows]
            piece = (part.to(dtype) if scales is None else to_fp8(part, scales)).contiguous()
            # NumPy has no bfloat16: hand the bytes over.
            self._put(piece.view(torch.uint8).numpy().data.cast("B"))
            self._progress(piece.nbytes)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
