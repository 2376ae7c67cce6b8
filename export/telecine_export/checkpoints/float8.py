"""Weights in eight-bit floats, with or without a scale beside them."""

from __future__ import annotations

from torch import Tensor

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint

SCALES = ("weight_scale", "scale_weight")  # compressed-tensors and torch call it so; ComfyUI
ACTIVATION_SCALES = ("input_scale", "scale_input")  # of what the weight is multiplied with: float graphs need none


def scaled(checkpoint: Checkpoint, name: str, weight: Tensor) -> Tensor:
    """(out, in) float8 → float32, times the layer's scale: one number, or one a row.

    Raises:
        SourceError: a scale of another kind.
    """
    values = weight.float()
    layer = name.rpartition(".")[0] + "."
    siblings = {other.removeprefix(layer) for other in checkpoint.names() if other.startswith(layer)}
    scales = {other for other in siblings if "." not in other and "scale" in other and "table" not in other}
    for scale_name in scales.difference(ACTIVATION_SCALES):
        scale = checkpoint.load(layer + scale_name).float()
        if scale_name not in SCALES or scale.numel() not in (1, len(values)):
            raise SourceError(
                f"{layer}{scale_name} of {checkpoint.origin} has shape {list(scale.shape)}, beside a float8 weight",
                expected=f"{' or '.join(SCALES)}: one number, or one for each of {len(values)} rows",
                fix="Export the model from unquantised weights, or from GGUF.",
            )
        values *= scale.reshape(-1, *[1] * (values.ndim - 1))
    return values
