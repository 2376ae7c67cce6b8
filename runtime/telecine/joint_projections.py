"""Projections of an attention that a bundle may hold as one matrix (`telecine export --fuse-qkv`), by name."""

from __future__ import annotations

# diffusers' names of joint projections: what they hold of one attention, in the order of their rows.
JOINTS = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}


def joint_parts(name: str) -> list[str]:
    """Names of the checkpoint's tensors that a joint tensor is made of; of another tensor, its own.

    They have as many rows each.
    """
    *outer, layer, kind = name.split(".") if name.count(".") >= 2 else ("", name)
    return [".".join((*outer, part, kind)) for part in JOINTS[layer]] if layer in JOINTS else [name]
