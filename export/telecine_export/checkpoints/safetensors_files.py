"""Tensors of one or several `.safetensors` files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from telecine.safetensors_files import check_suffix, unreadable
from telecine_export.checkpoints.checkpoint import Checkpoint


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
            check_suffix(file)
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise unreadable(file, error) from error
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
