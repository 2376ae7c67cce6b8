"""diffusers' own tiling, to the bit of its order of blending: `tiled_decode`, `_temporal_tiled_decode`, `..._encode`.

Its tiles overlap little and are blended to their very edges, where they saw padding: it is here to give the frames
that diffusers gives. `seamless` is the better one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from telecine.shapes import Grid
from telecine.tiling.tile import Array, Extent, Network, Tile


@dataclass(frozen=True, slots=True)
class Steps:
    """Tiles along an axis: of `size`, every `stride` of the input; of the output each keeps `keep`, and blends `blend`
    with its neighbour."""

    size: int
    stride: int
    keep: int
    blend: int

    def spans(self, length: int) -> list[Extent]:
        """What the tiles read of so many places: the last ones what is left, which may be a single place."""
        return [Extent(start, min(start + self.size, length)) for start in range(0, length, self.stride)]


@dataclass(frozen=True, slots=True)
class Blended:
    """AutoencoderKLLTXVideo with `use_tiling` and `use_framewise_decoding`, and the tiles in space of others.

    `made`: (frames, height, width) of the whole output. `extra`: what a tile in time after the first has too many: a
    decoder's last frame, an encoder's first latent.
    """

    time: Steps
    rows: Steps
    columns: Steps
    made: tuple[int, int, int]
    extra: slice

    @classmethod
    def decoder(
        cls, shape: tuple[int, int, int], grid: Grid, *, size: int, stride: int, frames: int, hop: int
    ) -> Blended:
        """For (F, H, W) latents. Tiles of `size` pixels every `stride`, of `frames` frames every `hop`.

        Source: `AutoencoderKLLTXVideo.tiled_decode`, `_temporal_tiled_decode`.
        """
        space = Steps(size // grid.spatial, stride // grid.spatial, keep=stride, blend=size - stride)
        return cls(
            time=Steps(frames // grid.temporal, hop // grid.temporal, keep=hop, blend=frames - hop),
            rows=space,
            columns=space,
            made=((shape[0] - 1) * grid.temporal + 1, shape[1] * grid.spatial, shape[2] * grid.spatial),
            extra=slice(None, -1),
        )

    @classmethod
    def encoder(
        cls, shape: tuple[int, int, int], grid: Grid, *, size: int, stride: int, frames: int, hop: int
    ) -> Blended:
        """For a video of (F, H, W) latents, with sizes as for the decoder.

        Source: `AutoencoderKLLTXVideo.tiled_encode`, `_temporal_tiled_encode`.
        """
        temporal, spatial = grid.temporal, grid.spatial
        space = Steps(size, stride, keep=stride // spatial, blend=size // spatial - stride // spatial)
        return cls(
            time=Steps(frames, hop, keep=hop // temporal, blend=frames // temporal - hop // temporal),
            rows=space,
            columns=space,
            made=shape,
            extra=slice(1, None),
        )

    def run(self, network: Network, source: Array) -> Iterator[Array]:
        """(B, C, F, H, W) input → the network's output in pieces along time, in order: (B, C', n, H', W')."""
        length, time = source.shape[2], self.time
        if length <= time.size:
            yield self._picture(network, source, Extent(0, length))
            return
        left, before = self.made[0], None
        for start in range(0, length, time.stride):
            piece = self._picture(network, source, Extent(start, min(start + time.size + 1, length)))
            if before is not None:
                piece = piece[:, :, self.extra]
                _blend(before, piece, 2, time.blend)
            kept = piece[:, :, : min(time.keep + (before is None), left)]
            left -= kept.shape[2]
            before = piece
            if kept.shape[2]:
                yield kept

    def spans(self, height: int, width: int) -> tuple[list[Extent], list[Extent]]:
        """What the tiles of a picture read along its height, and along its width."""
        if height <= self.rows.size and width <= self.columns.size:
            return [Extent(0, height)], [Extent(0, width)]
        return self.rows.spans(height), self.columns.spans(width)

    def _picture(self, network: Network, source: Array, frames: Extent) -> Array:
        """(B, C', n, H', W') of some frames: `tiled_decode` and `tiled_encode`."""
        down, across = self.rows, self.columns
        rows, columns = self.spans(*source.shape[3:])
        if len(rows) == len(columns) == 1:
            tile = Tile(frames, rows[0], columns[0])
            return network(tile.of(source), tile)
        strips: list[Array] = []
        above: list[Array] = []
        for in_height in rows:
            row: list[Array] = []
            for in_width in columns:
                tile = Tile(frames, in_height, in_width)
                made = network(tile.of(source), tile)
                if above:
                    _blend(above[len(row)], made, 3, down.blend)
                if row:
                    _blend(row[-1], made, 4, across.blend)
                row.append(made)
            strips.append(np.concatenate([tile[..., : down.keep, : across.keep] for tile in row], axis=4))
            above = row
        return np.concatenate(strips, axis=3)[..., : self.made[1], : self.made[2]]


def _blend(before: Array, after: Array, axis: int, extent: int) -> None:
    """Fade in the start of `after`, in place, from the end of `before`: `blend_t`, `blend_v` and `blend_h`."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    if not extent:
        return
    weights = (np.arange(extent) / extent).reshape(-1, 1, 1, 1, 1)
    last = np.moveaxis(before, axis, 0)[-extent:]
    first = np.moveaxis(after, axis, 0)[:extent]
    first[...] = last * (1 - weights).astype(np.float32) + first * weights.astype(np.float32)
