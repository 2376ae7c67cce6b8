"""A part of what a network reads, cut along time, height and width."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Sides = tuple[int, int, int]  # (frames, height, width)


class Extent(NamedTuple):
    """Places start..stop-1 along one axis."""

    start: int
    stop: int


class Tile(NamedTuple):
    """Where a tile lies in the whole input of the network: latents for a decoder, pixels for an encoder."""

    frames: Extent
    rows: Extent
    columns: Extent

    def of(self, source: Array) -> Array:
        """(B, C, f, h, w): this tile of (B, C, F, H, W)."""
        return source[:, :, slice(*self.frames), slice(*self.rows), slice(*self.columns)]


# A (B, C, f, h, w) tile, and where it lies → what the network makes of it, in an array that the caller may change.
Network = Callable[[Array, Tile], Array]
