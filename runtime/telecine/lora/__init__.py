"""LoRA (arXiv 2106.09685) without torch: files of every common layout, and what they add to a model's weights."""

from telecine.lora.deltas import Delta, Weights, fuse, read_deltas
from telecine.lora.request import Lora, LoraInput, resolve, split_scale

__all__ = ["Delta", "Lora", "LoraInput", "Weights", "fuse", "read_deltas", "resolve", "split_scale"]
