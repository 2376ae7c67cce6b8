"""Tiles with context around what is kept of them, and short fades between: no seams, whatever the size of the tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from telecine.tiling.axis import Axis
from telecine.tiling.tile import Array, Network, Tile


@dataclass(frozen=True, slots=True)
class Seamless:
    """Tiles along time, height and width; one tile along each is no tiling at all."""

    time: Axis
    rows: Axis
    columns: Axis

    @property
    def single(self) -> bool:
        """Whether one tile is all."""
        return all(len(axis.reads) == 1 for axis in (self.time, self.rows, self.columns))

    def run(self, network: Network, source: Array) -> Iterator[Array]:
        """(B, C, F, H, W) input → the network's output in pieces along time, in order: (B, C', n, H', W').

        A piece is handed out as soon as nothing more can change it.
        """
        faded: Array | None = None
        for index in range(len(self.time.reads)):
            piece = self._picture(network, source, index)
            if len(self.time.reads) > 1:
                piece *= self.time.window(index)[:, np.newaxis, np.newaxis]
            if faded is not None:
                piece[:, :, : faded.shape[2]] += faded
            if index == len(self.time.fades):
                yield piece
                return
            done = self.time.fades[index].start - self.time.counts(index).start
            faded = piece[:, :, done:].copy()  # a view would keep all of the piece
            yield piece[:, :, :done]
            del piece

    def _picture(self, network: Network, source: Array, index: int) -> Array:
        """(B, C', n, H', W'): where tile `index` in time counts, whole in height and width."""
        rows, columns, kept = self.rows, self.columns, self.time.inner(index)
        picture: Array | None = None
        for row, column in np.ndindex(len(rows.reads), len(columns.reads)):
            tile = Tile(self.time.reads[index], rows.reads[row], columns.reads[column])
            made = network(tile.of(source), tile)[:, :, kept]
            if len(rows.reads) == len(columns.reads) == 1:
                return made
            if picture is None:
                picture = np.zeros_like(made, shape=(*made.shape[:3], rows.length, columns.length))
            made = made[..., rows.inner(row), columns.inner(column)]
            place = (..., slice(*rows.counts(row)), slice(*columns.counts(column)))
            picture[place] += made * (rows.window(row)[:, np.newaxis] * columns.window(column))
        assert picture is not None
        return picture
