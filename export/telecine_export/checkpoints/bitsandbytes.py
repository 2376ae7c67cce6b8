"""bitsandbytes' weights undone without bitsandbytes: 8-bit rows (LLM.int8, arXiv 2208.07339), 4-bit blocks (QLoRA).

Names and arithmetic are those of bitsandbytes' Linear8bitLt and QuantState, as diffusers and transformers save them.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint

FOUR_BIT_KINDS = ("nf4", "fp4")
UNQUANTISED = "Export the model from unquantised weights, or from GGUF."


def eight_bit(checkpoint: Checkpoint, name: str, weight: Tensor) -> Tensor:
    """(out, in) int8 → float32: a row's largest magnitude, `SCB`, was scaled to 127.

    Raises:
        SourceError: the scales are missing or do not fit, or the weight is laid out for a GPU's int8 units.
    """
    layer = name.removesuffix(".weight")
    if f"{layer}.SCB" not in checkpoint:
        raise SourceError(
            f"tensor {name} of {checkpoint.origin} is int8, with no {layer}.SCB",
            expected="bitsandbytes' scales beside the weight",
            fix=UNQUANTISED,
        )
    scales = checkpoint.load(f"{layer}.SCB").float()
    layout = f"{layer}.weight_format"
    if scales.shape != weight.shape[:1] or (layout in checkpoint and checkpoint.load(layout).item() != 0):
        raise SourceError(
            f"{name} of {checkpoint.origin} is int8 of shape {list(weight.shape)} with {list(scales.shape)} scales"
            + (f" in layout {checkpoint.load(layout).item()}" if layout in checkpoint else ""),
            expected="rows with a scale each, in layout 0 (row)",
            fix=UNQUANTISED,
        )
    return weight.float().mul_(scales[:, None]).mul_(1 / 127)


def four_bit_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    """The shape that a packed weight had; None for what is not packed."""
    return tuple(_state(checkpoint, name)["shape"]) if _state_name(checkpoint, name) else None


def four_bit(checkpoint: Checkpoint, name: str, packed: Tensor) -> Tensor:
    """(n / 2, 1) uint8 → float32 in its own shape: two codes a byte, the first in the high bits, scaled by blocks.

    Raises:
        SourceError: a part of the quantisation is missing or does not fit.
    """
    if not _state_name(checkpoint, name):
        raise SourceError(
            f"tensor {name} of {checkpoint.origin} is uint8, with no quantisation state",
            expected="bitsandbytes' nf4 or fp4",
            fix=UNQUANTISED,
        )
    state = _state(checkpoint, name)
    code = checkpoint.load(f"{name}.quant_map").float()
    # A byte's two values at once: half the indices.
    pairs = torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1)
    size, block = math.prod(state["shape"]), state["blocksize"]
    values = pairs[packed.flatten().int()].flatten()[:size]
    scales = _scales(checkpoint, name, state)
    if (values.numel(), scales.numel()) != (size, -(-size // block)):
        _refuse(checkpoint, name, f"{values.numel()} codes and {scales.numel()} scales for {size} weights by {block}")
    whole = size // block * block
    values[:whole].view(-1, block).mul_(scales[: whole // block, None])
    values[whole:].mul_(scales[-1])
    return values.reshape(state["shape"])


def _scales(checkpoint: Checkpoint, name: str, state: dict[str, Any]) -> Tensor:
    """(blocks,) largest magnitudes; doubly quantised ones are 8-bit codes of their own, in larger blocks."""
    scales = checkpoint.load(f"{name}.absmax")
    if "nested_blocksize" not in state:
        return scales.float()
    code = checkpoint.load(f"{name}.nested_quant_map").float()
    outer = checkpoint.load(f"{name}.nested_absmax").float().repeat_interleave(state["nested_blocksize"])
    return code[scales.int()] * outer[: scales.numel()] + state["nested_offset"]


def _state_name(checkpoint: Checkpoint, name: str) -> str | None:
    names = (f"{name}.quant_state.bitsandbytes__{kind}" for kind in FOUR_BIT_KINDS)
    return next((state for state in names if state in checkpoint), None)


def _state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    stored = checkpoint.load(f"{_state_name(checkpoint, name)}")
    try:
        state: dict[str, Any] = json.loads(bytes(stored.tolist()))
    except ValueError:
        _refuse(checkpoint, name, "an unreadable quantisation state")
    return state


def _refuse(checkpoint: Checkpoint, name: str, problem: str) -> NoReturn:
    raise SourceError(
        f"tensor {name} of {checkpoint.origin} has {problem}",
        expected="bitsandbytes' 4-bit blocks",
        fix=UNQUANTISED,
    )
