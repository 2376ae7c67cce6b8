"""Tensors of a GGUF file, dequantised to float32 as they are loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, quants
from gguf.gguf_reader import ReaderTensor
from torch import Tensor

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint

MAGIC = b"GGUF"
PLAIN = ("F32", "F16")
# What diffusers dequantises too.
QUANTISED = (
    "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip


class GgufCheckpoint(Checkpoint):
    """The file is mapped, so that a tensor's blocks are read when it is loaded.

    Values are ggml's: blocks are scaled in float32, where diffusers scales them in float16.
    """

    def __init__(self, file: Path) -> None:
        """
        Raises:
            SourceError: a damaged file, or a quantisation that cannot be undone.
        """
        self.origin = file
        try:
            reader = GGUFReader(file)
        except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:  # as its parser stumbles
            raise SourceError(
                f"{file} cannot be read: {error}", expected="a whole GGUF file", fix="Download or copy it again."
            ) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        unknown = sorted({self.stored_as(name) for name in self._tensors} - {*PLAIN, *QUANTISED})
        if unknown or reader.byte_order != "I":
            raise SourceError(
                f"{file} holds tensors as {', '.join(unknown) or 'big-endian numbers'}",
                expected=f"little-endian {', '.join((*PLAIN, *QUANTISED))}",
                fix="Use another quantisation of the model.",
            )

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        # GGUF lists the fastest axis first.
        return tuple(int(size) for size in reversed(self._tensor(name).shape))

    def stored_as(self, name: str) -> str:
        return self._tensor(name).tensor_type.name

    def load(self, name: str) -> Tensor:
        tensor = self._tensor(name)
        if self.stored_as(name) in PLAIN:
            values = np.array(tensor.data)  # a copy: torch wants memory that can be written
        else:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(values).reshape(self.shape(name))

    def close(self) -> None:
        self._tensors.clear()

    def _tensor(self, name: str) -> ReaderTensor:
        if name not in self._tensors:
            self._missing(name)
        return self._tensors[name]
