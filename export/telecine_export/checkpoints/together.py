"""Several checkpoints as one: a graph may take weights from more than one component of a source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from torch import Tensor

from telecine_export.checkpoints.checkpoint import Checkpoint


class Together(Checkpoint):
    """Answers for the tensors of all `parts`, which it closes; a name that several have is the first's."""

    def __init__(self, parts: Sequence[Checkpoint]) -> None:
        self._parts = tuple(parts)
        self.origin = Path(" and ".join(str(part.origin) for part in parts))

    def names(self) -> Collection[str]:
        return dict.fromkeys(name for part in self._parts for name in part.names())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._part(name).shape(name)

    def stored_as(self, name: str) -> str:
        return self._part(name).stored_as(name)

    def load(self, name: str) -> Tensor:
        return self._part(name).load(name)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __contains__(self, name: str) -> bool:
        return any(name in part for part in self._parts)

    def _part(self, name: str) -> Checkpoint:
        for part in self._parts:
            if name in part:
                return part
        self._missing(name)
