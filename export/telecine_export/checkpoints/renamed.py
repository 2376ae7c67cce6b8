"""A checkpoint's tensors under other names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from telecine_export.checkpoints.checkpoint import Checkpoint, Wrapped


class Renamed(Wrapped):
    """Shows the tensors of `names` alone; it maps each new name to the inner checkpoint's."""

    def __init__(self, inner: Checkpoint, names: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._names = names

    def names(self) -> Collection[str]:
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(self._inner_name(name))

    def stored_as(self, name: str) -> str:
        return self.inner.stored_as(self._inner_name(name))

    def load(self, name: str) -> Tensor:
        return self.inner.load(self._inner_name(name))

    def _inner_name(self, name: str) -> str:
        if name not in self._names:
            self._missing(name)
        return self._names[name]
