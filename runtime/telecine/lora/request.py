"""Which LoRA files, and how strongly: from the command line and from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from telecine.errors import SourceError
from telecine.safetensors_files import weight_files

MAX_SCALE = 1e6
# What `resolve` takes for one file.
LoraInput = str | Path | tuple[str | Path, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A file, and how strongly it acts.

    Raises:
        SourceError: the scale is no finite number.
    """

    file: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        if not (number and -MAX_SCALE < self.scale < MAX_SCALE):  # infinities and NaN too
            raise SourceError(
                f"the scale of {self.file} is {self.scale!r}",
                expected="a finite scale",
                fix="Give 0.8 for less than all of it, or none for 1.",
            )


def split_scale(text: str) -> tuple[str, float]:
    """`FILE` or `FILE=SCALE` → (FILE, SCALE); a file's name may hold an equals sign itself."""
    name, found, number = text.rpartition("=")
    try:
        return (name, float(number)) if found else (text, 1.0)
    except ValueError:
        return text, 1.0


def resolve(loras: LoraInput | Sequence[LoraInput]) -> tuple[Lora, ...]:
    """One file or several, each alone or as (file, scale); a folder stands for the one file in it.

    Raises:
        SourceError: there is no such file, a folder has several, or a scale is no finite number.
    """
    if isinstance(loras, (str, Path)):
        return (_one(loras),)
    if isinstance(loras, tuple) and len(loras) == 2 and not isinstance(loras[1], (str, Path, tuple)):
        return (_one((loras[0], loras[1])),)
    return tuple(map(_one, loras))


def _one(item: LoraInput) -> Lora:
    given, scale = item if isinstance(item, tuple) else (item, 1.0)
    path = Path(os.path.expanduser(given))  # Path.expanduser raises where ~NAME is no user
    if not path.exists():
        raise SourceError(f"{given} does not exist", expected="a LoRA file", fix="Check the path.")
    return Lora(file=weight_files(path)[0] if path.is_dir() else path, scale=scale)
