"""What LoRA files add to weights: W + scale · alpha / rank · up @ down, in float32."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from telecine.dtypes import Floats
from telecine.errors import SourceError
from telecine.json_files import read_json
from telecine.lora.keys import PEFT, Keys, Rename
from telecine.lora.request import Lora
from telecine.safetensors_files import SafetensorsFiles

METADATA_KEY = "lora_adapter_metadata"  # of diffusers' save_lora_weights
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT's save_pretrained


class Weights(Protocol):
    """What LoRA files act on: a checkpoint's names and shapes. `origin` is for messages."""

    @property
    def origin(self) -> Path: ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delta:
    """What one file adds to one weight: factor · (out, rank) up @ (rank, in) down."""

    up: Floats
    down: Floats
    factor: float


def fuse(weight: Floats, deltas: Sequence[Delta]) -> Floats:
    """(out, in) float32 → the same with every delta added, in their order; a new array.

    Exporter and runtime share it: another order of the sums would be other bits.
    """
    total = np.array(weight, np.float32)
    for delta in deltas:
        product = delta.up @ delta.down
        product *= np.float32(delta.factor)
        total += product
    return total


def read_deltas(loras: Sequence[Lora], base: Weights, rename: Rename) -> dict[str, tuple[Delta, ...]]:
    """What the files add to each weight of `base`, in their order; the files are not needed after.

    `rename` gives the checkpoint's name for a layer of an original layout; others it leaves as they are.

    Raises:
        SourceError: a damaged file, keys that match no weight, factors of a wrong shape, or another method than LoRA.
    """
    keys = Keys(base.names(), rename)
    deltas: dict[str, list[Delta]] = defaultdict(list)
    for lora in loras:
        for weight, delta in _deltas(lora, base, keys).items():
            deltas[weight].append(delta)
    return {weight: tuple(several) for weight, several in deltas.items()}


def _deltas(lora: Lora, base: Weights, keys: Keys) -> dict[str, Delta]:
    file = SafetensorsFiles([lora.file], lora.file)
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    unmatched = []
    for key in file.names():
        found = keys.find(key)
        if found is None:
            unmatched.append(key)
        else:
            weight, part = found
            parts[weight][part] = key
    if unmatched or not parts:
        _refuse(
            file,
            f"{len(unmatched)} tensors that match no weight of {base.origin}: {_some(unmatched)}",
            "low-rank factors (lora_A and lora_B, or lora_down and lora_up) of this transformer's linear layers",
        )
    config = _adapter_config(file)
    # All shapes first: a file for another model is told from one that is cut.
    for weight, names in parts.items():
        _check_shapes(file, weight, names, base.shape(weight))
    return {weight: _delta(file, weight, names, lora.scale, config) for weight, names in parts.items()}


def _check_shapes(file: SafetensorsFiles, weight: str, names: Mapping[str, str], shape: tuple[int, ...]) -> None:
    if "down" not in names or "up" not in names:
        _refuse(file, f"half a pair: {', '.join(names.values())}", "a down and an up factor for each weight")
    down, up = file.shape(names["down"]), file.shape(names["up"])
    if len(down) != 2 or len(up) != 2 or up[1] != down[0] or (up[0], down[1]) != shape:
        _refuse(
            file,
            f"{names['up']} of shape {list(up)} and {names['down']} of {list(down)}",
            f"({shape[0]}, rank) and (rank, {shape[-1]}), as {weight} is {list(shape)}",
        )


def _delta(
    file: SafetensorsFiles, weight: str, names: Mapping[str, str], scale: float, config: Mapping[str, Any]
) -> Delta:
    up, down = file.load(names["up"]), file.load(names["down"])
    rank = len(down)
    alpha = file.load(names["alpha"]).item() if "alpha" in names else _configured_alpha(config, weight, rank)
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return Delta(up=up, down=down, factor=scale * alpha / divisor)


def _adapter_config(file: SafetensorsFiles) -> dict[str, Any]:
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
        peft = any(key.startswith(PEFT) for key in file.names()) and beside.is_file()
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


def _refuse(file: SafetensorsFiles, problem: str, expected: str) -> NoReturn:
    raise SourceError(
        f"the LoRA file {file.origin} has {problem}",
        expected=expected,
        fix="Use a LoRA of this model, in plain low-rank form.",
    )
