"""The spellings of LoRA keys: which layer of the model a tensor belongs to, and what it is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

# diffusers, the original checkpoints, PEFT; some files have two of them.
PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.")
PEFT = PREFIXES[0]
# kohya's scripts write a layer's name with underscores for dots.
KOHYA = "lora_unet_"
KEY = re.compile(r"(?P<layer>.+)\.(?:lora[_.](?P<part>A|B|down|up)(?:\.default)?\.weight|(?P<alpha>alpha))")
PARTS = {"A": "down", "down": "down", "B": "up", "up": "up"}

# A layer's name in an original layout → diffusers'; others stay as they are.
Rename = Callable[[str], str]


class Keys:
    """Finds the weight of a key among a model's."""

    def __init__(self, weights: Collection[str], rename: Rename) -> None:
        self._weights, self._rename = frozenset(weights), rename
        self._by_underscores = {weight.removesuffix(".weight").replace(".", "_"): weight for weight in self._weights}

    def find(self, key: str) -> tuple[str, str] | None:
        """(weight, "down", "up" or "alpha") of a tensor's key; None where it matches no weight of the model."""
        match = KEY.fullmatch(key)
        weight = self._weight(match["layer"]) if match else None
        return (weight, match["alpha"] or PARTS[match["part"]]) if match and weight else None

    def _weight(self, layer: str) -> str | None:
        if layer.startswith(KOHYA):
            return self._by_underscores.get(self._rename(layer.removeprefix(KOHYA)))
        for prefix in PREFIXES:
            layer = layer.removeprefix(prefix)
        name = self._rename(f"{layer}.weight")
        return name if name in self._weights else None
