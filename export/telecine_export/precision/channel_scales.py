"""Weights in FP8: a scale for each output channel, and numbers rounded to E4M3."""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
# Rows that are looked at together: bounds the memory of a scale, whatever the weight's size.
ROWS = 512


def channel_scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(inputs, outputs) weight → (outputs,) scales in `dtype` that take each column's largest value to E4M3's.

    A half's smallest normal number is the least scale: a column below it keeps fewer bits, and one of zeros is zero.
    """
    largest = torch.zeros(weight.shape[1], dtype=torch.float32)
    for start in range(0, weight.shape[0], ROWS):
        torch.maximum(largest, weight[start : start + ROWS].float().abs().amax(dim=0), out=largest)
    return (largest / FP8_MAX).clamp(min=torch.finfo(torch.float16).tiny).to(dtype)


def to_fp8(rows: Tensor, scales: Tensor) -> Tensor:
    """(rows, outputs) of a weight → E4M3 numbers of it, nearest even; the scale's own rounding may pass the limit."""
    return (rows / scales.float()).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
