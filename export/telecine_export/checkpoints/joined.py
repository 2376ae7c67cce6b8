"""A checkpoint that also has its attentions' projections joined into one matrix, as `fuse_qkv_projections` does."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.joint_projections import joint_parts
from telecine_export.checkpoints.checkpoint import Wrapped


class Joined(Wrapped):
    """Answers for `....to_qkv.weight` with the rows of `to_q`, `to_k` and `to_v`; the same for biases and `to_kv`."""

    def __contains__(self, name: str) -> bool:
        return name in self.inner or all(part in self.inner for part in joint_parts(name))

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.inner:
            return self.inner.shape(name)
        shapes = [self.inner.shape(part) for part in joint_parts(name)]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stored_as(self, name: str) -> str:
        return self.inner.stored_as(name if name in self.inner else joint_parts(name)[0])

    def load(self, name: str) -> Tensor:
        if name in self.inner:
            return self.inner.load(name)
        return torch.cat([self.inner.load(part) for part in joint_parts(name)])
