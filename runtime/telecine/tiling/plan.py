"""Which tiles: as asked, or the ones that decode least twice among those that fit a memory limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from telecine.errors import EngineError, RequestError
from telecine.shapes import Grid, LatentShape
from telecine.tiling.axis import Axis, Unit, count, frames, latents, pixels
from telecine.tiling.blended import Blended
from telecine.tiling.memory import Footprint
from telecine.tiling.options import TilingOptions
from telecine.tiling.refusals import check_grid, shown, too_little, too_small
from telecine.tiling.seamless import Seamless
from telecine.tiling.tile import Array, Network, Sides

# Latents of context on either side of where seamless tiles meet. Exact would be the receptive field: 22 latents for the
# decoder of 0.9.5, 31 for 0.9.1, 26 for 0.9.0, more than most pictures have. Trained decoders see far less of it.
CONTEXT = 3
# Seamless tiles where nothing else is said, in latents; diffusers' own, in pixels and frames.
SIZE = 16
DIFFUSERS_SIZE, DIFFUSERS_FRAMES = 512, 16


class Cut(NamedTuple):
    """Size of tiles along one axis, and how far apart they are at most, in latents."""

    size: int
    stride: int


class Largest(NamedTuple):
    """The most that a network takes in one call: (frames, height, width) in latents, and videos."""

    sides: Sides
    videos: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Tiles, the videos that go through the network at a time, and the bytes that this is predicted to take."""

    tiles: Seamless | Blended
    videos: int
    peak: int

    @property
    def redraws(self) -> bool:
        """Whether a network that draws noise does so for every tile, as in diffusers' tiling."""
        return isinstance(self.tiles, Blended)

    @property
    def whole(self) -> bool:
        """Whether the network gets all of a video at once, and nothing is blended."""
        return isinstance(self.tiles, Seamless) and self.tiles.single

    def run(self, network: Network, source: Array) -> Iterator[Array]:
        """(B, C, F, H, W) input → the network's output in pieces along time, in order: (B, C', n, H', W')."""
        return self.tiles.run(network, source)


def plan_decoder(
    options: TilingOptions,
    shape: LatentShape,
    grid: Grid,
    footprint: Footprint,
    *,
    videos: int,
    largest: Largest | None = None,
) -> Plan:
    """Tiles for decoding (videos, C, F, H, W) latents; `largest` is what the network takes, None where it takes all.

    Raises:
        RequestError: sizes off the grid or too small, or a memory limit that cannot be met.
        EngineError: the network takes no tiles as asked for.
    """
    sides = (shape.frames, shape.height, shape.width)
    return _Planner(options, sides, grid, footprint, videos, largest, decoding=True).plan()


def plan_encoder(
    options: TilingOptions,
    shape: LatentShape,
    grid: Grid,
    footprint: Footprint,
    *,
    videos: int,
    largest: Largest | None = None,
) -> Plan:
    """Tiles for encoding videos into (videos, C, F, H, W) latents; `shape` is of the latents.

    Raises:
        RequestError, EngineError: as `plan_decoder`.
    """
    sides = (shape.frames, shape.height, shape.width)
    return _Planner(options, sides, grid, footprint, videos, largest, decoding=False).plan()


def least_peak(
    options: TilingOptions,
    shape: LatentShape,
    grid: Grid,
    footprint: Footprint,
    *,
    videos: int,
    largest: Largest | None = None,
    decoding: bool,
) -> int:
    """Bytes that half of the VAE takes at the least, with the tiles that `options` leave open, whatever their limit.

    Raises:
        RequestError, EngineError: as `plan_decoder`.
    """
    sides = (shape.frames, shape.height, shape.width)
    unlimited = replace(options, memory_limit=None)
    return _Planner(unlimited, sides, grid, footprint, videos, largest, decoding=decoding).least()


@dataclass(frozen=True, slots=True)
class _Planner:
    """One half of the VAE on `videos` videos of `sides` = (F, H, W) latents."""

    options: TilingOptions
    sides: Sides
    grid: Grid
    footprint: Footprint
    videos: int
    largest: Largest | None
    decoding: bool

    @property
    def _at_once(self) -> int:
        return min(self.videos, self.largest.videos) if self.largest else self.videos

    def plan(self) -> Plan:
        mode, limit = self.options.mode, self.options.room
        if mode == "diffusers":
            return self._within_limit(self._as_diffusers(), "Use tiling='auto', which chooses tiles that fit.")
        frames, height, width = self.sides
        untiled = self._seamless((Cut(frames, 1), Cut(height, 1), Cut(width, 1)), self._at_once)
        if mode == "off":
            self._check_fits(self.sides)
            return self._within_limit(untiled, "Leave tiling out: tiles are then chosen that fit.")
        time, space, _ = asked = self._all_asked()
        within = limit is None or untiled.peak <= limit
        if mode == "auto" and time is None and space is None and within and self._fits(self.sides):
            return untiled
        most = self.largest.sides if self.largest else self.sides
        if limit is None:
            asked = [cut or _with_context(min(SIZE, side)) for cut, side in zip(asked, most, strict=True)]
        return self._seamless(self._cheapest(self._possible(asked)), at_once=1)

    def least(self) -> int:
        """Of all that could be planned under some limit, the least peak."""
        if self.options.mode in ("diffusers", "off"):
            return self.plan().peak
        possible = product(*self._possible(self._all_asked()))
        return min(self._peak((time.size, rows.size, columns.size), 1) for time, rows, columns in possible)

    def _possible(self, asked: list[Cut | None]) -> list[list[Cut]]:
        """The cuts of each axis."""
        most = self.largest.sides if self.largest else self.sides
        candidates = [_candidates(*each) for each in zip(self.sides, asked, most, strict=True)]
        if not all(candidates):
            raise self._too_large()
        return candidates

    def _all_asked(self) -> list[Cut | None]:
        time = self._asked("tile_frames", self.options.frames, self.options.frame_stride, self.grid.temporal)
        space = self._asked("tile_size", self.options.size, self.options.stride, self.grid.spatial)
        return [time, space, space]

    def _asked(self, name: str, size: int | None, stride: int | None, ratio: int) -> Cut | None:
        """The cut that a request names for seamless tiles."""
        if size is None:
            return None
        check_grid(name, size, ratio)
        if stride is not None:
            check_grid(name.replace("size", "stride").replace("frames", "frame_stride"), stride, ratio)
            return Cut(size // ratio, stride // ratio)
        least = (2 * CONTEXT + 1) * ratio
        if size < least:
            raise RequestError(
                f"{name} is {size}",
                expected=f"at least {least}: {CONTEXT * ratio} of context on either side hide the seams",
                fix="Use a larger tile, or give a stride too.",
            )
        return _with_context(size // ratio)

    def _cheapest(self, candidates: list[list[Cut]]) -> tuple[Cut, Cut, Cut]:
        """The cuts that run the network on the fewest latents within the limit; of equals, the fewest tiles.

        Raises:
            RequestError: not even the smallest fit.
        """
        limit = self.options.room
        counts = [{cut: count(side, *cut) for cut in cuts} for side, cuts in zip(self.sides, candidates, strict=True)]
        best: tuple[tuple[int, int], tuple[Cut, Cut, Cut]] | None = None
        least = math.inf
        for time, rows, columns in product(*candidates):
            peak = self._peak((time.size, rows.size, columns.size), 1)
            least = min(least, peak)
            tiles = counts[0][time] * counts[1][rows] * counts[2][columns]
            cost = (tiles * time.size * rows.size * columns.size, tiles)
            if (limit is None or peak <= limit) and (best is None or cost < best[0]):
                best = (cost, (time, rows, columns))
        if best is None:
            raise too_little(self.options, int(least), "Allow that much, or ask for a smaller video.")
        return best[1]

    def _seamless(self, cuts: tuple[Cut, Cut, Cut], at_once: int) -> Plan:
        time, rows, columns = cuts
        self._check_side(min(rows.size, columns.size))
        in_time, in_space = frames(self.grid.temporal), pixels(self.grid.spatial)
        # LTX-Video's encoder is causal in time, its decoder is not.
        tiles = Seamless(
            self._axis(0, time, in_time, causal=not self.decoding),
            self._axis(1, rows, in_space),
            self._axis(2, columns, in_space),
        )
        return Plan(tiles, at_once, self._peak((time.size, rows.size, columns.size), at_once))

    def _axis(self, axis: int, cut: Cut, unit: Unit, *, causal: bool = False) -> Axis:
        reads, makes = (latents, unit) if self.decoding else (unit, latents)
        return Axis.cover(self.sides[axis], size=cut.size, stride=cut.stride, reads=reads, makes=makes, causal=causal)

    def _as_diffusers(self) -> Plan:
        options, temporal, spatial = self.options, self.grid.temporal, self.grid.spatial
        size, length = options.size or DIFFUSERS_SIZE, options.frames or DIFFUSERS_FRAMES
        # diffusers' own strides are seven eighths and a half of its sizes.
        stride = options.stride or max(size * 7 // 8 // spatial, 1) * spatial
        hop = options.frame_stride or max(length // 2 // temporal, 1) * temporal
        for name, value in (("tile_size", size), ("tile_stride", stride)):
            check_grid(name, value, spatial)
        for name, value in (("tile_frames", length), ("tile_frame_stride", hop)):
            check_grid(name, value, temporal)
        make = Blended.decoder if self.decoding else Blended.encoder
        tiles = make(self.sides, self.grid, size=size, stride=stride, frames=length, hop=hop)
        unit = 1 if self.decoding else spatial
        spans = tiles.spans(self.sides[1] * unit, self.sides[2] * unit)
        self._check_side(min(stop - start for span in spans for start, stop in span) // unit)
        largest = (length // temporal + 1, size // spatial, size // spatial)
        frames, height, width = (min(pair) for pair in zip(largest, self.sides, strict=True))
        self._check_fits((frames, height, width))
        return Plan(tiles, self._at_once, self._peak((frames, height, width), self._at_once))

    def _peak(self, tile: Sides, at_once: int) -> int:
        return self.footprint.peak(tile, self.sides, self.grid, videos=self.videos, at_once=at_once)

    def _fits(self, tile: Sides) -> bool:
        return self.largest is None or all(side <= most for side, most in zip(tile, self.largest.sides, strict=True))

    def _check_side(self, smallest: int) -> None:
        """Refuse a call of the network on fewer latents a side than it takes."""
        if smallest < self.footprint.least_side:
            raise too_small(smallest, self.sides, self.footprint.least_side, self.grid)

    def _check_fits(self, tile: Sides) -> None:
        if not self._fits(tile):
            raise self._too_large()

    def _too_large(self) -> EngineError:
        assert self.largest is not None
        whole, most = (shown(sides, self.grid) for sides in (self.sides, self.largest.sides))
        least = (2 * CONTEXT + 1) * self.grid.spatial
        return EngineError(
            f"the VAE's engine takes {most} at once, and the video is {whole}",
            expected=f"an engine for tiles of it: seamless ones have at least {least} pixels a side",
            fix=f"Leave the options of tiling out, or run: telecine build BUNDLE --workload {whole} "
            "(and --vae-tile where it was given).",
        )

    def _within_limit(self, plan: Plan, fix: str) -> Plan:
        limit = self.options.room
        if limit is not None and plan.peak > limit:
            raise too_little(self.options, plan.peak, fix)
        return plan


def _with_context(size: int) -> Cut:
    return Cut(size, size - 2 * CONTEXT)


def _candidates(side: int, cut: Cut | None, most: int) -> list[Cut]:
    """The cut that was asked for, or for every number of tiles the smallest that have their context: none above `most`.

    What needs no cut needs no context.
    """
    if cut is not None:
        whole = side <= cut.size
        return [Cut(side, 1) if whole else cut] if whole or (cut.size <= most and cut.stride > 0) else []
    smallest: dict[int, Cut] = {}
    for size in range(2 * CONTEXT + 1, side):
        smallest.setdefault(count(side, *_with_context(size)), _with_context(size))
    return [each for each in (*smallest.values(), Cut(side, 1)) if each.size <= most]
