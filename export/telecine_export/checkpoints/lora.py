"""LoRA files (arXiv 2106.09685) fused into a checkpoint: W + scale · alpha / rank · up @ down, a tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint, Wrapped
from telecine_export.checkpoints.safetensors_files import SafetensorsCheckpoint
from telecine_export.json_files import read_json

# diffusers, the original checkpoints, PEFT; some files have two of them.
PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.")
KEY = re.compile(r"(?P<layer>.+)\.(?:lora[_.](?P<part>A|B|down|up)(?:\.default)?\.weight|(?P<alpha>alpha))")
PARTS = {"A": "down", "down": "down", "B": "up", "up": "up"}
METADATA_KEY = "lora_adapter_metadata"  # of diffusers' save_lora_weights
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT's save_pretrained


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A file to fuse, and how strongly."""

    file: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delta:
    """What one file adds to one weight."""

    checkpoint: Checkpoint
    down: str
    up: str
    factor: float


class FusedLoras(Wrapped):
    """A checkpoint with LoRA files added to its weights, in float32, in the files' order."""

    def __init__(self, inner: Checkpoint, loras: Sequence[Lora], rename: Callable[[str], str]) -> None:
        """`rename` gives the checkpoint's name for a weight of an original layout; others it leaves as they are.

        Raises:
            SourceError: a damaged file, keys that match no weight, or factors of a wrong shape.
        """
        super().__init__(inner)
        self._files: list[SafetensorsCheckpoint] = []
        self._deltas: dict[str, list[_Delta]] = defaultdict(list)
        try:
            for lora in loras:
                self._files.append(SafetensorsCheckpoint([lora.file], lora.file))
                for weight, delta in _deltas(self._files[-1], lora.scale, inner, rename).items():
                    self._deltas[weight].append(delta)
        except SourceError:
            self.close()
            raise

    def load(self, name: str) -> Tensor:
        weight = self.inner.load(name)
        for delta in self._deltas.get(name, ()):
            up, down = (delta.checkpoint.load(part).float() for part in (delta.up, delta.down))
            weight = torch.addmm(weight.float(), up, down, alpha=delta.factor)
        return weight

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def _deltas(
    file: SafetensorsCheckpoint, scale: float, base: Checkpoint, rename: Callable[[str], str]
) -> dict[str, _Delta]:
    """What `file` adds to each weight of `base`."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    unmatched = []
    for key in file.names():
        match = KEY.fullmatch(key)
        weight = rename(_without_prefix(match["layer"]) + ".weight") if match else ""
        if match is None or weight not in base:
            unmatched.append(key)
        else:
            parts[weight][match["alpha"] or PARTS[match["part"]]] = key
    if unmatched or not parts:
        _refuse(
            file,
            f"{len(unmatched)} tensors that match no weight of {base.origin}: {_some(unmatched)}",
            "low-rank factors (lora_A and lora_B, or lora_down and lora_up) of this transformer's linear layers",
        )
    config = _adapter_config(file)
    return {weight: _delta(file, weight, names, scale, base, config) for weight, names in parts.items()}


def _delta(
    file: SafetensorsCheckpoint, weight: str, names: Mapping[str, str], scale: float, base: Checkpoint, config: Any
) -> _Delta:
    if "down" not in names or "up" not in names:
        _refuse(file, f"half a pair: {', '.join(names.values())}", "a down and an up factor for each weight")
    down, up, shape = file.shape(names["down"]), file.shape(names["up"]), base.shape(weight)
    if len(down) != 2 or len(up) != 2 or up[1] != down[0] or (up[0], down[1]) != shape:
        _refuse(
            file,
            f"{names['up']} of shape {list(up)} and {names['down']} of {list(down)}",
            f"({shape[0]}, rank) and (rank, {shape[-1]}), as {weight} is {list(shape)}",
        )
    rank = down[0]
    alpha = file.load(names["alpha"]).item() if "alpha" in names else _configured_alpha(config, weight, rank)
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return _Delta(checkpoint=file, down=names["down"], up=names["up"], factor=scale * alpha / divisor)


def _without_prefix(layer: str) -> str:
    for prefix in PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer


def _adapter_config(file: SafetensorsCheckpoint) -> dict[str, Any]:
    """PEFT's settings of the file, as diffusers keeps them inside it or PEFT beside it.

    Raises:
        SourceError: they cannot be read, or are of another method than plain LoRA.
    """
    beside = file.origin.parent / ADAPTER_CONFIG
    if METADATA_KEY in file.metadata:
        try:
            stored = json.loads(file.metadata[METADATA_KEY])
            config = {key.removeprefix("transformer."): value for key, value in stored.items()}
        except (ValueError, AttributeError) as error:
            _refuse(file, f"an unreadable {METADATA_KEY}: {error}", "JSON, as diffusers writes it")
    else:
        peft = any(key.startswith(PREFIXES[0]) for key in file.names()) and beside.is_file()
        config = read_json(beside) if peft else {}
    if config.get("use_dora"):
        _refuse(file, "DoRA's settings", "plain LoRA: DoRA's magnitudes are not low-rank")
    return config


def _configured_alpha(config: Mapping[str, Any], weight: str, rank: int) -> float:
    """Of PEFT's settings; without any, the rank, so that the factors are added as they are."""
    layer = weight.removesuffix(".weight")
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):  # as PEFT matches them
            return float(alpha)
    return float(config.get("lora_alpha", rank))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "") or "it is empty"


def _refuse(file: Checkpoint, problem: str, expected: str) -> NoReturn:
    raise SourceError(
        f"the LoRA file {file.origin} has {problem}",
        expected=expected,
        fix="Use a LoRA of this model, in plain low-rank form.",
    )
