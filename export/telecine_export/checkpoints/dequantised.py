"""A checkpoint whose quantised weights come out as floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from telecine_export.checkpoints import bitsandbytes, float8
from telecine_export.checkpoints.checkpoint import Checkpoint, Wrapped

# By the type of the stored tensor. What a weight was scaled by lies beside it, under names of its own.
DEQUANTISERS: Mapping[torch.dtype, Callable[[Checkpoint, str, Tensor], Tensor]] = {
    torch.int8: bitsandbytes.eight_bit,
    torch.uint8: bitsandbytes.four_bit,
    torch.float8_e4m3fn: float8.scaled,
    torch.float8_e5m2: float8.scaled,
}


class Dequantised(Wrapped):
    """Loads bitsandbytes' 8-bit and 4-bit weights and float8 ones as float32, and all others as they are."""

    def shape(self, name: str) -> tuple[int, ...]:
        # Four bits a weight are stored in pairs, as one long column.
        return bitsandbytes.four_bit_shape(self.inner, name) or self.inner.shape(name)

    def load(self, name: str) -> Tensor:
        tensor = self.inner.load(name)
        dequantise = DEQUANTISERS.get(tensor.dtype)
        return dequantise(self.inner, name, tensor) if dequantise else tensor
