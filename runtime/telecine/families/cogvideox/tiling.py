"""Tiles for CogVideoX's VAE: those of diffusers, in height and width alone, at its own sizes or at ones that fit.

Time has no tiles: chunks take it. Nor are there tiles without seams: the VAE normalises over all of what it is given,
so that a tile is another picture than the same place of the whole, whatever context it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from telecine.errors import EngineError, RequestError
from telecine.families.cogvideox.chunks import DECODER, ENCODER
from telecine.families.cogvideox.host import Host
from telecine.memory_budget import check_limit
from telecine.shapes import LatentShape
from telecine.tiling import TilingOptions
from telecine.tiling.blended import Blended, Steps
from telecine.tiling.memory import DECODED_BYTES, FLOAT

Array = npt.NDArray[np.float32]

# Shares of a tile that diffusers lets neighbours overlap by, in height and width.
OVERLAPS = (1 / 6, 1 / 5)
# Of the sides of tiles, in latents, so that diffusers' whole numbers leave no rest: its overlaps then fit the picture.
WHOLE = (6, 5)
# The largest activation, this many times over, for each graph that runs: what ONNX Runtime's CPU provider holds at its
# peak, caches and all; every graph's session keeps an arena of its own. Resident growth measured over sizes: 28 to 31
# times for the decoder's first chunk and as much again for later ones, 9 to 12 for the encoder's.
DECODER_COPIES, ENCODER_COPIES = 33, 13
# The whole video is one tile in time.
ALWAYS = Steps(1 << 40, 1 << 40, keep=1 << 40, blend=0)

Sides = tuple[int, int]


@dataclass(frozen=True, slots=True)
class VaePlan:
    """How a half of the VAE runs on (B, ..., H, W) latents: in `tiles`, or whole where there are none; `peak` is the
    bytes that this is predicted to take."""

    tiles: Blended | None
    peak: int


def plan_vae(
    options: TilingOptions,
    latent: LatentShape,
    host: Host,
    *,
    videos: int,
    decoding: bool,
    largest: Sides | None = None,
) -> VaePlan:
    """Tiles for `videos` videos of (F, H, W) latents; `largest` is the picture that the graphs take, None for any.

    Raises:
        RequestError: a mode that cannot be, sizes off the grid, or a memory limit that cannot be met.
        EngineError: the graphs take no tiles as asked for.
    """
    return _Planner(options, latent, host, videos, decoding, largest).plan()


def least_peak(
    options: TilingOptions,
    latent: LatentShape,
    host: Host,
    *,
    videos: int,
    decoding: bool,
    largest: Sides | None = None,
) -> int:
    """Bytes of running a half on the tiles that take the least, of those that `plan_vae` chooses from.

    Raises:
        RequestError, EngineError: as `plan_vae`.
    """
    return _Planner(options, latent, host, videos, decoding, largest).least()


@dataclass(frozen=True, slots=True)
class _Planner:
    options: TilingOptions
    latent: LatentShape
    host: Host
    videos: int
    decoding: bool
    largest: Sides | None

    def plan(self) -> VaePlan:
        options, whole = self.options, (self.latent.height, self.latent.width)
        plans = self._plans()
        fitting = [plan for plan in plans if options.room is None or plan.peak <= options.room]
        if not fitting:
            peak = options.reserved + min(plan.peak for plan in plans)
            check_limit(options.memory_limit, max(peak, options.least))
        return min(fitting, key=lambda plan: self._cost(plan, whole))

    def least(self) -> int:
        return min(plan.peak for plan in self._plans())

    def _plans(self) -> list[VaePlan]:
        """What the options leave to choose from."""
        options, whole = self.options, (self.latent.height, self.latent.width)
        if options.mode == "seamless":
            raise RequestError(
                "tiling='seamless' for CogVideoX",
                expected="off, diffusers or auto: its VAE normalises over the picture, so that tiles never match it",
                fix="Leave tiling out, or use 'diffusers'.",
            )
        if options.size is not None or options.mode == "diffusers":
            asked = self._asked()
            self._check_fits(self._tile(asked))
            return [self._tiled(asked)]
        if options.mode == "off":
            self._check_fits(whole)
        untiled = [VaePlan(None, self._peak(whole, None))] if self._fits(whole) else []
        if untiled and (options.mode == "off" or options.memory_limit is None):
            return untiled
        cuts = product(*self._candidates(whole))
        plans = untiled + [self._tiled(steps) for steps in cuts if self._fits(self._tile(steps))]
        if not plans:
            raise self._too_large()
        return plans

    def _tile(self, steps: tuple[Steps, ...]) -> Sides:
        """The largest tile, in latents."""
        read = 1 if self.decoding else self.host.grid.spatial
        height, width = (
            min(each.size // read, side)
            for each, side in zip(steps, (self.latent.height, self.latent.width), strict=True)
        )
        return height, width

    def _fits(self, tile: Sides) -> bool:
        return self.largest is None or (tile[0] <= self.largest[0] and tile[1] <= self.largest[1])

    def _check_fits(self, tile: Sides) -> None:
        if not self._fits(tile):
            raise self._too_large()

    def _too_large(self) -> EngineError:
        assert self.largest is not None
        spatial, frames = self.host.grid.spatial, self.host.grid.num_frames(self.latent.frames)
        height, width = (spatial * side for side in self.largest)
        return EngineError(
            f"the VAE's engines take {width}x{height} pixels at once, and the video or its tiles are larger",
            expected="an engine for them",
            fix="Leave the options of tiling out, or run: telecine build BUNDLE --workload "
            f"{spatial * self.latent.width}x{spatial * self.latent.height}x{frames} (and --vae-tile where it was"
            " given).",
        )

    def _asked(self) -> tuple[Steps, Steps]:
        """The tiles that a request names, in latents, or diffusers' own."""
        spatial, size, stride = self.host.grid.spatial, self.options.size, self.options.stride
        if stride is not None and size is not None:
            for name, value in (("tile_size", size), ("tile_stride", stride)):
                if value % spatial:
                    raise RequestError(f"{name} is {value}", expected=f"a multiple of {spatial}", fix="Use one.")
            steps = self._steps(size // spatial, stride // spatial)
            return steps, steps
        sides = self.host.tile if size is None else (size, size)
        made = [overlapped(side // spatial, axis, spatial) for axis, side in enumerate(sides)]
        if None in made or any(side % spatial for side in sides):
            unit = spatial * math.lcm(*WHOLE)
            raise RequestError(
                f"tiles of {sides[1]} x {sides[0]} pixels",
                expected=f"a multiple of {unit}: at others diffusers' overlaps do not fit together, and its video has"
                " another size than the untiled one",
                fix=f"Use tile_size={unit}, or give tile_stride too.",
            )
        rows, columns = (self._steps(*each) for each in made if each is not None)
        return rows, columns

    def _steps(self, size: int, stride: int) -> Steps:
        """Tiles of `size` latents every `stride`, in units of the half's input and output."""
        spatial = self.host.grid.spatial
        read, make = (1, spatial) if self.decoding else (spatial, 1)
        return Steps(size * read, stride * read, keep=stride * make, blend=(size - stride) * make)

    def _candidates(self, whole: Sides) -> list[list[Steps]]:
        """Tiles along each side with diffusers' overlaps, the smallest first, and none at all."""
        candidates = []
        for axis, side in enumerate(whole):
            sizes = range(WHOLE[axis], side, WHOLE[axis])
            cuts = [overlapped(size, axis, self.host.grid.spatial) for size in sizes]
            candidates.append([self._steps(*cut) for cut in cuts if cut is not None] + [self._steps(side, side)])
        return candidates

    def _tiled(self, steps: tuple[Steps, ...]) -> VaePlan:
        rows, columns = steps
        unit = self.host.grid.spatial
        made = (self.host.grid.num_frames(self.latent.frames), self.latent.height * unit, self.latent.width * unit)
        if not self.decoding:
            made = (self.latent.frames, self.latent.height, self.latent.width)
        tiles = Blended(time=ALWAYS, rows=rows, columns=columns, made=made, extra=slice(None))
        tile = self._tile(steps)
        if tile == (self.latent.height, self.latent.width):  # diffusers does not tile what is one tile
            return VaePlan(None, self._peak(tile, None))
        return VaePlan(tiles, self._peak(tile, tiles))

    def _cost(self, plan: VaePlan, whole: Sides) -> tuple[int, int]:
        """Latents that the network runs on in all, then tiles."""
        if plan.tiles is None:
            return whole[0] * whole[1], 1
        read = 1 if self.decoding else self.host.grid.spatial
        counts, area = 1, 1
        for side, steps in zip(whole, (plan.tiles.rows, plan.tiles.columns), strict=True):
            counts *= -(-side * read // steps.stride)
            area *= min(steps.size // read, side)
        return counts * area, counts

    def _peak(self, tile: Sides, tiles: Blended | None) -> int:
        """Bytes: what the graphs of a tile's chunks hold, and the host's frames beside them.

        Tiles run one video at a time, and give out the video when all of it is there.
        """
        host, at_once = self.host, self.videos if tiles is None else 1
        values, half, length = host.decoder_widest * DECODER_COPIES, DECODER, self.latent.frames
        if not self.decoding:
            values, half = host.encoder_widest * ENCODER_COPIES, ENCODER
            length = host.grid.num_frames(length)
        graphs = len(half.roles(length))
        network = at_once * tile[0] * tile[1] * values * graphs * FLOAT
        if not self.decoding:
            return math.ceil(network)
        frames = self.host.grid.num_frames(self.latent.frames if tiles is not None else min(self.latent.frames, 3))
        pixels = self.videos * frames * self.latent.height * self.latent.width * self.host.grid.spatial**2
        return math.ceil(network + pixels * DECODED_BYTES)


def overlapped(size: int, axis: int, spatial: int) -> tuple[int, int] | None:
    """Size and stride of diffusers' tiles of `size` latents in height (axis 0) or width; None where its roundings of
    the overlap in latents and in pixels, `spatial` of them each, are not the same.

    Source: diffusers `AutoencoderKLCogVideoX.tiled_decode`.
    """
    stride = int(size * (1 - OVERLAPS[axis]))
    fits = int(size * spatial * OVERLAPS[axis]) == spatial * (size - stride)
    return (size, stride) if fits and 0 < stride < size else None


def run_tiles(plan: VaePlan, run: Callable[[Array], Array], source: Array) -> Iterator[Array]:
    """(B, C, F, H, W) input → what `run` makes of its tiles, blended as diffusers does: one piece."""
    assert plan.tiles is not None
    return plan.tiles.run(lambda part, _: run(part), source)
