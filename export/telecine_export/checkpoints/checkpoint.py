"""What every checkpoint offers, whatever its format: named tensors, loaded one at a time and never unpickled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from torch import Tensor

from telecine.errors import SourceError


class Checkpoint(ABC):
    """Named tensors of one origin. Asking for a name that is not there raises SourceError."""

    origin: Path

    @abstractmethod
    def names(self) -> Collection[str]:
        """Every tensor's name; membership is quick."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `load` gives, without loading."""

    @abstractmethod
    def stored_as(self, name: str) -> str:
        """The type on disk: BF16, F8_E4M3, Q4_K, ..."""

    @abstractmethod
    def load(self, name: str) -> Tensor:
        """The tensor, in the checkpoint's own type or in what it dequantises to."""

    @abstractmethod
    def close(self) -> None: ...

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def formats(self) -> str:
        """The types on disk, the commonest first: `Q4_K, F32`."""
        return ", ".join(kind for kind, _ in Counter(map(self.stored_as, self.names())).most_common())

    def _missing(self, name: str) -> NoReturn:
        raise SourceError(
            f"{self.origin} has no tensor {name}",
            expected="every tensor that its config.json asks for",
            fix="The checkpoint is incomplete or its config.json is another model's: download it again.",
        )


class NoTensors(Checkpoint):
    """What graphs without weights are made of."""

    origin = Path("nothing")

    def names(self) -> Collection[str]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        self._missing(name)

    def stored_as(self, name: str) -> str:
        self._missing(name)

    def load(self, name: str) -> Tensor:
        self._missing(name)

    def close(self) -> None:
        pass


class Wrapped(Checkpoint):
    """A view of another checkpoint, which it closes."""

    def __init__(self, inner: Checkpoint) -> None:
        self.inner = inner
        self.origin = inner.origin

    def names(self) -> Collection[str]:
        return self.inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(name)

    def stored_as(self, name: str) -> str:
        return self.inner.stored_as(name)

    def load(self, name: str) -> Tensor:
        return self.inner.load(name)

    def close(self) -> None:
        self.inner.close()
