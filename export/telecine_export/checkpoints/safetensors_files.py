"""Tensors of one or several `.safetensors` files, and which files of a folder those are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.json_files import read_json

# What diffusers and transformers call a component's weights.
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class SafetensorsCheckpoint(Checkpoint):
    """The tensors of `files` together; `origin` names them in messages."""

    def __init__(self, files: Sequence[Path], origin: Path) -> None:
        """
        Raises:
            SourceError: a damaged file, or a pickle.
        """
        self.origin = origin
        self.metadata: dict[str, str] = {}
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        for file in files:
            _check_suffix(file)
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise SourceError(
                    f"{file} cannot be read: {error}",
                    expected="a whole safetensors file",
                    fix="Download or copy it again.",
                ) from error
            self.metadata |= handle.metadata() or {}
            self._handles.update(dict.fromkeys(handle.keys(), handle))

    def names(self) -> Collection[str]:
        return self._handles.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(name).get_slice(name).get_shape())

    def stored_as(self, name: str) -> str:
        return str(self._handle(name).get_slice(name).get_dtype())

    def load(self, name: str) -> Tensor:
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def close(self) -> None:
        self._handles.clear()
        self._stack.close()

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            self._missing(name)
        return self._handles[name]


def _check_suffix(file: Path) -> None:
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
