"""LoRA files of random factors for a model's transformer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from telecine.bundle import Bundle
from telecine.graph_weights import GraphWeights

LAYERS = ("proj_in", "time_embed.linear", "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2")
Factors = dict[str, tuple[np.ndarray, np.ndarray]]


def factors(bundle: Path, *, seed: int = 0, rank: int = 4, layers: Sequence[str] = LAYERS) -> Factors:
    """(down, up) of each layer."""
    rng = np.random.default_rng(seed)
    weights = GraphWeights.open(Bundle.open(bundle), "transformer")
    made = {}
    for layer in layers:
        out, into = weights.shape(f"{layer}.weight")
        made[layer] = (
            rng.standard_normal((rank, into), dtype=np.float32),
            rng.standard_normal((out, rank), dtype=np.float32) / 4,
        )
    return made


def write_lora(file: Path, pairs: Factors, **metadata: Any) -> Path:
    """A file in diffusers' layout."""
    tensors = {}
    for layer, (down, up) in pairs.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = down
        tensors[f"transformer.{layer}.lora_B.weight"] = up
    save_file(tensors, file, metadata or None)
    return file


def deltas(pairs: Factors, scale: float = 1.0) -> dict[str, np.ndarray]:
    """scale · up @ down of each layer, in float64."""
    return {layer: scale * up.astype(np.float64) @ down.astype(np.float64) for layer, (down, up) in pairs.items()}
