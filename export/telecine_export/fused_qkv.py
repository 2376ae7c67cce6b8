"""`--fuse-qkv`: one matrix product for the projections of an attention that read the same states.

diffusers' `fuse_qkv_projections`, for every family: self-attention's queries, keys and values become `to_qkv`,
cross-attention's keys and values `to_kv`. A processor says which of them it joins, in `projections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine.joint_projections import JOINTS
from telecine_export.graphs import GraphSpec

SELF, CROSS = "to_qkv", "to_kv"


def project(attn: Any, joint: str, states: Tensor) -> Sequence[Tensor]:
    """The projections of the same (B, T, D) states that `joint` stands for, by one product where they are fused."""
    fused = getattr(attn, joint, None)
    if fused is not None:
        return fused(states).chunk(len(JOINTS[joint]), dim=-1)
    return [getattr(attn, name)(states) for name in JOINTS[joint]]


def fuse_qkv(spec: GraphSpec) -> GraphSpec:
    """The same graph with fused projections; `checkpoints.joined` has their weights.

    Raises:
        SourceError: when it is traced, and the module has none to fuse.
    """

    def build(dtype: torch.dtype) -> nn.Module:
        module = spec.build(dtype)
        attentions = [each for each in module.modules() if hasattr(getattr(each, "processor", None), "projections")]
        for attention in attentions:
            _fuse(attention)
        if not attentions:
            raise SourceError(
                f"--fuse-qkv for the {spec.component}",
                expected="attention with separate projections of the same states",
                fix="Export without --fuse-qkv.",
            )
        return module

    return replace(spec, build=build, fused=True)


def _fuse(attn: Any) -> None:
    joint = attn.processor.projections
    parts = [getattr(attn, name) for name in JOINTS[joint]]
    widths = {part.out_features for part in parts}
    if len(widths) > 1:
        raise SourceError(
            f"--fuse-qkv for projections of widths {sorted(widths)}",
            expected="one width, as every published model has",
            fix="Export without --fuse-qkv.",
        )
    first, bias = parts[0], parts[0].bias is not None
    fused = nn.Linear(first.in_features, len(parts) * first.out_features, bias=bias, device="meta")
    setattr(attn, joint, fused.to(first.weight.dtype))
    for name in JOINTS[joint]:
        delattr(attn, name)
