"""One axis cut into tiles that overlap: what each reads, what it makes, and how neighbours share what both make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from telecine.tiling.tile import Array, Extent

# Latents start..stop-1 → what they span in another unit.
Unit = Callable[[Extent], Extent]


def latents(extent: Extent) -> Extent:
    """Latents themselves."""
    return extent


def pixels(ratio: int) -> Unit:
    """Rows or columns of pixels."""
    return lambda extent: Extent(ratio * extent.start, ratio * extent.stop)


def frames(ratio: int) -> Unit:
    """Frames of a tile that is decoded or encoded by itself: of its first latent, the last frame alone."""
    return lambda extent: Extent(ratio * extent.start, ratio * (extent.stop - 1) + 1)


def count(length: int, size: int, stride: int) -> int:
    """How many spans `spread` makes."""
    return max(-(-(length - size) // stride), 0) + 1


def spread(length: int, size: int, stride: int) -> list[Extent]:
    """Spans of `size` that cover 0..length-1, from end to end, evenly, and at most `stride` apart.

    All have one size, so that a backend plans its memory once, and none ends within the picture where it need not.
    """
    gaps = count(length, size, stride) - 1
    if not gaps:
        return [Extent(0, length)]
    starts = [gap * (length - size) // gaps for gap in range(gaps + 1)]
    return [Extent(start, start + size) for start in starts]


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one axis, in order.

    `reads` and `makes`: extents of each tile in the units of the network's input and output. `fades`: extents of the
    output over which each tile gives way to the next. A tile counts for nothing beyond its fades: near a cut it saw
    padding where there is picture.
    """

    reads: tuple[Extent, ...]
    makes: tuple[Extent, ...]
    fades: tuple[Extent, ...]

    @classmethod
    def cover(cls, length: int, *, size: int, stride: int, reads: Unit, makes: Unit, causal: bool = False) -> Axis:
        """Cover `length` latents with tiles of `size` latents, at most `stride` apart (at least 1, below `size`).

        Two tiles have the same context where they fade: a third of what both make on either side. A causal network
        needs none after a frame, so its earlier tile is used to its end.
        """
        spans = spread(length, size, stride)
        made = [makes(span) for span in spans]
        fades: list[Extent] = []
        shortest = min((later.start - earlier.start for earlier, later in pairwise(made)), default=0)
        for earlier, later in pairwise(made):
            shared = earlier.stop - later.start
            # Fades must not meet: nowhere do more than two tiles count.
            fade = max(min(shared // 3, shortest - 1), 1)
            start = earlier.stop - fade if causal else later.start + (shared - fade) // 2
            fades.append(Extent(start, start + fade))
        return cls(tuple(reads(span) for span in spans), tuple(made), tuple(fades))

    @property
    def length(self) -> int:
        """Of the whole output."""
        return self.makes[-1].stop

    def counts(self, index: int) -> Extent:
        """Where tile `index` counts, in units of the output."""
        start = self.fades[index - 1].start if index else self.makes[index].start
        stop = self.fades[index].stop if index < len(self.fades) else self.makes[index].stop
        return Extent(start, stop)

    def inner(self, index: int) -> slice:
        """Where tile `index` counts, within what it makes."""
        extent, first = self.counts(index), self.makes[index].start
        return slice(extent.start - first, extent.stop - first)

    def window(self, index: int) -> Array:
        """Weights of tile `index` where it counts: at every place those of all tiles add up to 1."""
        extent = self.counts(index)
        weights = np.ones(extent.stop - extent.start, np.float32)
        if index:
            rising = _ramp(self.fades[index - 1])
            weights[: len(rising)] = rising
        if index < len(self.fades):
            falling = 1 - _ramp(self.fades[index])
            weights[-len(falling) :] = falling
        return weights


def _ramp(fade: Extent) -> Array:
    """Weights of the later tile over a fade, evenly spaced between 0 and 1."""
    steps = fade.stop - fade.start
    return np.arange(1, steps + 1, dtype=np.float32) / np.float32(steps + 1)
