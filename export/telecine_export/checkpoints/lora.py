"""A checkpoint with LoRA files fused into it, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from telecine.errors import SourceError
from telecine.lora import Lora, fuse, read_deltas
from telecine_export.checkpoints.checkpoint import Checkpoint, Wrapped


class FusedLoras(Wrapped):
    """A checkpoint with LoRA files added to its weights, in float32, in the files' order."""

    def __init__(self, inner: Checkpoint, loras: Sequence[Lora], rename: Callable[[str], str]) -> None:
        """`rename` gives the checkpoint's name for a weight of an original layout; others it leaves as they are.

        Raises:
            SourceError: a damaged file, keys that match no weight, or factors of a wrong shape.
        """
        super().__init__(inner)
        try:
            self._deltas = read_deltas(loras, inner, rename)
        except SourceError:
            self.close()
            raise

    def load(self, name: str) -> Tensor:
        weight = self.inner.load(name)
        deltas = self._deltas.get(name)
        # In NumPy, as the runtime fuses: torch's product would be other bits than a LoRA that is loaded later.
        return torch.from_numpy(fuse(weight.float().numpy(), deltas)) if deltas else weight
