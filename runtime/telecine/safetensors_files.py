"""Safetensors files as float32 NumPy arrays (NumPy has no bfloat16), and which files of a folder to read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from telecine.dtypes import STORAGE, Floats, to_float32
from telecine.errors import SourceError
from telecine.json_files import read_json

# What diffusers and transformers call a component's weights.
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

# The format's names of the types that a weight may have.
DTYPES: Mapping[str, str] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8e4m3fn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor's bytes lie."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFiles:
    """The tensors of `files` together, read one at a time; `origin` names them in messages."""

    def __init__(self, files: Sequence[Path], origin: Path) -> None:
        """
        Raises:
            SourceError: a missing or damaged file, or a pickle.
        """
        self.files, self.origin = tuple(files), origin
        self.metadata: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        for file in files:
            check_suffix(file)
            try:
                with safe_open(file, framework="numpy") as handle:  # checks the header and the file's size against it
                    self.metadata |= handle.metadata() or {}
                self._places |= _places(file)
            except (SafetensorError, OSError) as error:
                raise unreadable(file, error) from error

    def names(self) -> Collection[str]:
        """Every tensor's name; membership is quick."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """
        Raises:
            SourceError: there is no such tensor.
        """
        return self._place(name).shape

    def stored_as(self, name: str) -> str:
        """The type on disk: F32, BF16, F8_E4M3, ...

        Raises:
            SourceError: there is no such tensor.
        """
        return self._place(name).dtype

    def load(self, name: str) -> Floats:
        """The tensor, as float32.

        Raises:
            SourceError: there is no such tensor, its type is not one of `DTYPES`, or the file was cut meanwhile.
        """
        place = self._place(name)
        dtype = DTYPES.get(place.dtype)
        if dtype is None:
            raise SourceError(
                f"tensor {name} of {self.origin} is {place.dtype}",
                expected=f"one of {', '.join(DTYPES)}",
                fix="Save it as float32, float16 or bfloat16.",
            )
        count = int(np.prod(place.shape, dtype=np.int64))
        try:
            stored = np.fromfile(place.file, STORAGE[dtype], count=count, offset=place.offset)
        except OSError as error:
            raise unreadable(place.file, error) from error
        if len(stored) != count:
            raise unreadable(place.file, "it was cut")
        return to_float32(stored, dtype).reshape(place.shape)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            self._missing(name)
        return self._places[name]

    def _missing(self, name: str) -> NoReturn:
        raise SourceError(
            f"{self.origin} has no tensor {name}",
            expected="every tensor of the component",
            fix="Use a whole checkpoint of the same model.",
        )


def _places(file: Path) -> dict[str, _Place]:
    """By the file's header, which must have been checked."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(size))
    header.pop("__metadata__", None)
    return {
        name: _Place(
            file=file,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def unreadable(file: Path, reason: object) -> SourceError:
    """The error of a file that is not whole."""
    return SourceError(
        f"{file} cannot be read: {reason}", expected="a whole safetensors file", fix="Download or copy it again."
    )


def check_suffix(file: Path) -> None:
    """
    Raises:
        SourceError: a pickle, by its name.
    """
    if file.suffix in PICKLE_SUFFIXES:
        raise SourceError(
            f"{file} is a pickle, which runs code when it is read",
            expected="safetensors or GGUF (telecine never unpickles)",
            fix="Convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT).",
        )


def weight_files(folder: Path) -> list[Path]:
    """The files that diffusers would load with no `variant`; a variant (`NAME.fp16.safetensors`) if it is all there is.

    Raises:
        SourceError: no safetensors, a choice between several, or a missing shard.
    """
    for name in WEIGHT_NAMES:
        index, file = folder / f"{name}.safetensors.index.json", folder / f"{name}.safetensors"
        if index.is_file():
            return _shards(index)
        if file.is_file():
            return [file]
    indexes = sorted(folder.glob("*.safetensors.index.*json"))
    if len(indexes) == 1:
        return _shards(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise SourceError(
            f"{folder} has {len(files)} safetensors files and no index: {', '.join(file.name for file in files)}",
            expected=f"one file, or shards with an index, named {' or '.join(WEIGHT_NAMES)}",
            fix="Keep only the variant to export, or download the missing index.",
        )
    pickled = sorted(file for suffix in PICKLE_SUFFIXES for file in folder.glob(f"*{suffix}"))
    raise SourceError(
        f"{folder} has {pickled[0].name}, a pickle, and no safetensors" if pickled else f"{folder} has no safetensors",
        expected="weights as safetensors (telecine never unpickles)",
        fix="Load it with diffusers and save it with save_pretrained(safe_serialization=True).",
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    # A name with a folder in it would read outside the checkpoint.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing or not names:
        raise SourceError(
            f"{index.parent} lacks {', '.join(missing) or 'every shard'}",
            expected=f"the shards that {index.name} lists, beside it",
            fix="Download the folder again.",
        )
    return [index.parent / name for name in names]
