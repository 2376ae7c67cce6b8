"""Tiles cover everything once, in order, whatever their sizes; the memory limit holds. NumPy alone, and naive oracles.

`tests/parity/test_vae_tiling.py` has the real networks.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from telecine.errors import EngineError, RequestError
from telecine.shapes import Grid, LatentShape
from telecine.tiling import Footprint, Largest, Plan, Tile, TilingOptions, least_peak, plan_decoder, plan_encoder
from telecine.tiling.axis import Axis, count, frames, latents, pixels, spread
from telecine.tiling.options import parse_size, show_size
from telecine.tiling.plan import CONTEXT

Array = npt.NDArray[np.float32]
Sides = tuple[int, int, int]

# Small ratios, of which every rule is the same: 4 pixels and 2 frames a latent.
GRID = Grid(spatial=4, temporal=2)
DECODER, ENCODER = Footprint.decoder(1.0), Footprint.encoder(1.0)
# Of sums of products with weights, in float32.
ROUNDING = 1e-6

SHAPES = [(1, 1, 1), (1, 9, 30), (20, 1, 8), (13, 11, 17)]
OPTIONS: list[dict[str, Any]] = [
    {"mode": "seamless"},
    {"mode": "seamless", "size": 28, "frames": 14},
    {"mode": "seamless", "size": 36, "frames": 24},
    {"mode": "seamless", "size": 12, "stride": 4, "frames": 6, "frame_stride": 2},
    {"mode": "seamless", "size": 8, "stride": 4, "frames": 4, "frame_stride": 2},
    {"mode": "diffusers", "size": 16, "stride": 12, "frames": 4, "frame_stride": 2},
    {"mode": "diffusers", "size": 20, "stride": 4, "frames": 12, "frame_stride": 8},
    {"mode": "off"},
    {},
]


def latent_shape(sides: Sides) -> LatentShape:
    return LatentShape(frames=sides[0], height=sides[1], width=sides[2])


def plan_of(settings: dict[str, Any], sides: Sides, *, decoding: bool = True, videos: int = 1) -> Plan:
    make, footprint = (plan_decoder, DECODER) if decoding else (plan_encoder, ENCODER)
    return make(TilingOptions(**settings), latent_shape(sides), GRID, footprint, videos=videos)


def picture(places: list[range]) -> Array:
    """(1, 1, f, h, w): each value tells its place in the whole output."""
    t, y, x = np.ix_(*places)
    return np.asarray(t + y / 100 + x / 10000, np.float32)[np.newaxis, np.newaxis]


def made(tile: Tile, *, decoding: bool) -> list[range]:
    """Places of the output that a network makes of a tile."""
    if decoding:
        (f, h, w) = tile
        return [range(2 * f.start, 2 * f.stop - 1), *(range(4 * side.start, 4 * side.stop) for side in (h, w))]
    return [
        range(side.start // ratio, (side.stop - 1) // ratio + 1) for side, ratio in zip(tile, (2, 4, 4), strict=True)
    ]


def video_sides(sides: Sides) -> Sides:
    return 2 * sides[0] - 1, 4 * sides[1], 4 * sides[2]


@pytest.mark.parametrize("sides", SHAPES, ids=str)
@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: " ".join(map(str, settings.values())) or "auto")
@pytest.mark.parametrize("decoding", [True, False], ids=["decode", "encode"])
def test_every_place_gets_its_own_value(settings: dict[str, Any], sides: Sides, decoding: bool) -> None:
    """Where all tiles agree blending changes nothing: what comes out is the network's own picture, whole."""
    reads, makes = (sides, video_sides(sides)) if decoding else (video_sides(sides), sides)
    source = np.arange(np.prod(reads), dtype=np.float32).reshape(1, 1, *reads)

    def network(part: Array, tile: Tile) -> Array:
        inside = [slice(*extent) for extent in tile]
        np.testing.assert_array_equal(part, source[0, 0][tuple(inside)][np.newaxis, np.newaxis])
        return picture(made(tile, decoding=decoding))

    pieces = list(plan_of(settings, sides, decoding=decoding).run(network, source))
    assert all(piece.shape[2] for piece in pieces)
    whole = picture([range(side) for side in makes])
    if decoding and settings.get("mode") == "diffusers" and len(pieces) > 1:
        # diffusers drops a later tile's last frame, where its first is the one too many: it is all a frame late.
        assert sum(piece.shape[2] for piece in pieces) == makes[0]
        return
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), whole, rtol=5 * ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("settings", OPTIONS[1:5], ids=lambda settings: " ".join(map(str, settings.values())))
def test_seamless_is_a_weighted_mean_of_tiles(settings: dict[str, Any]) -> None:
    """Tiles of random values, against the definition: at each place, the sum of weight times value over all tiles."""
    sides = (9, 8, 13)
    plan = plan_of(settings, sides)
    rng = np.random.default_rng(0)
    kept: dict[Tile, Array] = {}

    def network(part: Array, tile: Tile) -> Array:
        kept[tile] = rng.standard_normal((2, 3, *map(len, made(tile, decoding=True))), dtype=np.float32)
        return kept[tile].copy()

    got = np.concatenate(list(plan.run(network, np.zeros((2, 1, *sides), np.float32))), axis=2)
    tiles: Any = plan.tiles
    axes = (tiles.time, tiles.rows, tiles.columns)
    expected = np.zeros((2, 3, *video_sides(sides)))
    for index in itertools.product(*(range(len(axis.reads)) for axis in axes)):
        tile = Tile(*(axis.reads[i] for axis, i in zip(axes, index, strict=True)))
        weights = [np.zeros(axis.length) for axis in axes]
        for weight, axis, i in zip(weights, axes, index, strict=True):
            weight[slice(*axis.counts(i))] = axis.window(i)
        places = np.ix_(*made(tile, decoding=True))
        product = np.einsum("t,y,x->tyx", *weights)[places]
        for video, channel in np.ndindex(2, 3):
            expected[video, channel][places] += kept[tile][video, channel] * product
    np.testing.assert_allclose(got, expected, atol=5 * ROUNDING, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("unit", [latents, pixels(4), frames(2)], ids=["latents", "pixels", "frames"])
def test_windows_add_up_and_keep_from_the_cuts(unit: Any, causal: bool) -> None:
    for length, size, stride in itertools.product(range(1, 24), range(2, 9), range(1, 8)):
        if stride >= size:
            continue
        axis = Axis.cover(length, size=size, stride=stride, reads=latents, makes=unit, causal=causal)
        total = np.zeros(axis.length)
        counted = np.zeros(axis.length, int)
        for index in range(len(axis.reads)):
            window = axis.window(index)
            assert (window > 0).all()
            total[slice(*axis.counts(index))] += window
            counted[slice(*axis.counts(index))] += 1
            assert axis.makes[index].start <= axis.counts(index).start
            assert axis.counts(index).stop <= axis.makes[index].stop
        np.testing.assert_allclose(total, 1, atol=ROUNDING)
        assert set(counted) <= {1, 2}
        for earlier, later, fade in zip(axis.makes, axis.makes[1:], axis.fades, strict=False):
            margin = (earlier.stop - later.start) // 3
            assert fade.start - later.start >= margin
            assert causal == (fade.stop == earlier.stop) or earlier.stop - fade.stop < 1


def test_spans_are_even_and_end_where_the_picture_ends() -> None:
    for length, size, stride in itertools.product(range(1, 40), range(1, 12), range(1, 12)):
        spans = spread(length, size, stride)
        assert len(spans) == count(length, size, stride)
        assert (spans[0].start, spans[-1].stop) == (0, length)
        assert {stop - start for start, stop in spans} == {min(size, length)}
        gaps = [later.start - earlier.start for earlier, later in itertools.pairwise(spans)]
        assert not gaps or (max(gaps) <= stride and max(gaps) - min(gaps) <= 1 and min(gaps) >= 1)


# Memory


def naive_least(limit: int | None, sides: Sides, videos: int) -> int | None:
    """Latents that the cheapest plan within the limit runs the network on, of all sizes of tile; None: none fits."""
    best = None
    every = [[*range(min(2 * CONTEXT + 1, side), side), side] for side in sides]
    for tile in itertools.product(*every):
        if limit is not None and DECODER.peak(tile, sides, GRID, videos=videos, at_once=1) > limit:
            continue
        tiles = 1
        for side, size in zip(sides, tile, strict=True):
            tiles *= 1 if size == side else count(side, size, size - 2 * CONTEXT)
        cost = tiles * tile[0] * tile[1] * tile[2]
        best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("sides", [(1, 9, 30), (20, 1, 8), (13, 11, 17), (30, 12, 12)], ids=str)
@pytest.mark.parametrize("videos", [1, 3])
def test_the_cheapest_tiles_within_the_limit(sides: Sides, videos: int) -> None:
    untiled = plan_of({}, sides, videos=videos)
    assert untiled.videos == videos
    for share in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1):
        limit = int(untiled.peak * share)
        naive = naive_least(limit, sides, videos)
        if naive is None:
            with pytest.raises(RequestError, match=r"memory_limit is .*; expected at least"):
                plan_of({"memory_limit": limit}, sides, videos=videos)
            continue
        plan = plan_of({"memory_limit": limit}, sides, videos=videos)
        assert plan.peak <= limit
        tiles: Any = plan.tiles
        cost = 1
        for axis in (tiles.time, tiles.rows, tiles.columns):
            cost *= len(axis.reads) * (axis.reads[0].stop - axis.reads[0].start)
        assert cost == naive


def test_what_is_refused_says_what_works() -> None:
    sides = (30, 12, 12)
    with pytest.raises(RequestError, match="expected at least") as caught:
        plan_of({"memory_limit": 1000}, sides)
    least = parse_size(str(caught.value).partition("at least ")[2].partition(" ")[0])
    assert plan_of({"memory_limit": least}, sides).peak <= least


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("settings", [{}, {"mode": "off"}, {"mode": "diffusers"}, {"size": 36}, {"frames": 24}])
def test_the_least_peak_is_the_lowest_limit_that_is_met(settings: dict[str, Any], decoding: bool) -> None:
    sides = (13, 11, 17)
    footprint = DECODER if decoding else ENCODER
    least = least_peak(TilingOptions(**settings), latent_shape(sides), GRID, footprint, videos=2, decoding=decoding)
    at = {"decoding": decoding, "videos": 2}
    assert plan_of(settings | {"memory_limit": least}, sides, **at).peak == least
    reserved = {"memory_limit": least + 99, "reserved": 100}
    for refused, named in (({"memory_limit": least - 1}, least), (reserved, least + 100)):
        with pytest.raises(RequestError, match=rf"at least {re.escape(show_size(named))} here"):
            plan_of(settings | refused, sides, **at)


@pytest.mark.parametrize("mode", ["off", "diffusers"])
def test_modes_with_tiles_of_their_own_keep_to_the_limit_or_refuse(mode: str) -> None:
    peak = plan_of({"mode": mode}, (30, 12, 12)).peak
    assert plan_of({"mode": mode, "memory_limit": peak}, (30, 12, 12)).peak == peak
    with pytest.raises(RequestError, match="memory_limit is"):
        plan_of({"mode": mode, "memory_limit": peak - 1}, (30, 12, 12))


SCRIPT = """
import json, sys
import numpy as np
from telecine.backends.choice import OnnxRuntimeBackend
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.bundle import Bundle
from telecine.families.ltx_video.decode import decode
from telecine.families.ltx_video.encode import encode_moments
from telecine.families.ltx_video.host import Host
from telecine.families.vae import DecodeSettings
from telecine.models import LoadedModels
from telecine.noise import Generator
from telecine.shapes import LatentShape
from telecine.tiling import plan_decoder
from telecine.upscale_request import UpscaleRequest

bundle, half, frames, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
opened = Bundle.open(bundle)
models = LoadedModels(opened, OnnxRuntimeBackend(opened, device="cpu", options=OnnxRuntimeOptions(threads=1)))
host = Host.parse(models.host)

def decoding(limit, latent):
    latents = np.zeros(latent.array_shape(1, host.latent_channels), np.float32)
    request = UpscaleRequest(
        latents=latents, adain_factor=0.0, tone_map_compression_ratio=0.0, decode_timestep=0.05, output_type="uint8",
        memory_limit=limit,
    )
    plan = plan_decoder(request.tiling_options(), latent, host.grid, host.decoder, videos=1)
    settings = DecodeSettings.of(request, plan)
    def run():
        frames = decode(models, host, latents, settings, [Generator(0)], [Generator(1)])
        return sum(piece.shape[1] for piece in frames.pieces)
    return run

def encoding(limit, latent):
    video = latent.video(host.grid)
    pixels = np.ones((1, 3, video.num_frames, video.height, video.width), np.float32)
    request = UpscaleRequest(
        latents=pixels, adain_factor=0.0, tone_map_compression_ratio=0.0, decode_timestep=0.05, output_type="uint8",
        memory_limit=limit,
    )
    return lambda: encode_moments(models, host, pixels, request.tiling_options()).shape[2]

def peak():
    # Not ru_maxrss: a process that was started inherits the peak of the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024

prepare = {"decode": decoding, "encode": encoding}[half]
prepare(None, LatentShape(frames=1, height=1, width=1))()  # loads the network
run = prepare(limit, LatentShape(frames=frames, height=7, width=7))
before = peak()
made = run()
print(json.dumps([made, peak() - before]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("model", "half", "frames", "limit"),
    [
        pytest.param("tiny_bundle", "decode", 30, 450, id="tiny-decode", marks=pytest.mark.slow),
        pytest.param("demo_bundle", "decode", 30, 450, id="demo-decode", marks=pytest.mark.slow),
        pytest.param("demo_bundle", "encode", 45, 330, id="demo-encode"),
    ],
)
def test_the_vae_stays_within_its_limit(
    model: str, half: str, frames: int, limit: int, request: Any, record_property: Callable[[str, object], None]
) -> None:
    """Of `frames` x 7 x 7 latents, on ONNX Runtime, in a process of its own: the peak of its resident memory."""
    bundle = request.getfixturevalue(model)

    def growth(limit: int | None) -> float:
        command = [sys.executable, "-c", SCRIPT, bundle, half, str(frames), json.dumps(limit and limit * 2**20)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        made, growth = json.loads(done.stdout)
        assert made == (frames if half == "encode" else 8 * (frames - 1) + 1)
        return float(growth / 2**20)

    tiled, untiled = growth(limit), growth(None)
    record_property("measured", f"{model} {half}: {tiled:.0f} MiB of a limit of {limit}, {untiled:.0f} untiled")
    assert tiled <= limit < untiled


# Options


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30), ("8GB", 8 * 10**9), ("1.5 gib", 3 * 2**29), ("500MB", 5 * 10**8), ("64KiB", 2**16),
        ("1024", 1024), ("2TiB", 2**41), (12345, 12345), (np.int64(7), 7), ("7B", 7),
    ],
)  # fmt: skip
def test_sizes_of_memory(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("value", ["", "GiB", "8 gigs", "-1GiB", "1e9", 0, -5, 1.5, True, "0", "8GiB!", [8]])
def test_what_is_no_size_of_memory(value: Any) -> None:
    with pytest.raises(RequestError, match="memory_limit is"):
        parse_size(value)


@pytest.mark.parametrize("size", [1, 10**6, 700 * 2**20 + 1, 2**30, 2**30 + 1, 123456789012])
def test_a_size_that_is_shown_is_enough(size: int) -> None:
    assert size <= parse_size(show_size(size)) <= size * 1.1 + 2**20


NONE = dict.fromkeys(("tile_size", "tile_stride", "tile_frames", "tile_frame_stride", "memory_limit"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tiling": "on"}, "tiling is 'on'; expected one of auto, off, seamless, diffusers"),
        ({"tiling": "off", "tile_size": 512}, "with tiling='off'"),
        ({"tile_stride": 64}, "tile_stride without tile_size"),
        ({"tile_frame_stride": 8}, "tile_frame_stride without tile_frames"),
        ({"tile_size": 64, "tile_stride": 64}, "stride below the size"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"tile_frames": 16.0}, "tile_frames is 16.0"),
        ({"memory_limit": "much"}, "memory_limit is 'much'"),
    ],
)
def test_wrong_options(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        TilingOptions.parse(**{"tiling": "auto"} | NONE | values)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 30}, "tile_size is 30; expected a multiple of 4"),
        ({"size": 24}, "tile_size is 24; expected at least 28"),
        ({"frames": 12}, "tile_frames is 12; expected at least 14"),
        ({"size": 32, "stride": 6}, "tile_stride is 6"),
        ({"frames": 16, "frame_stride": 3}, "tile_frame_stride is 3"),
        ({"mode": "diffusers", "size": 30}, "tile_size is 30"),
        ({"mode": "diffusers", "frames": 5}, "tile_frames is 5"),
    ],
)
def test_sizes_off_the_grid(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        plan_of(settings, (30, 12, 12))


@pytest.mark.parametrize("plan_half", [plan_decoder, plan_encoder])
@pytest.mark.parametrize("limit", [None, 2**40])
@pytest.mark.parametrize("most", [(20, 9, 30), (7, 9, 8), (20, 12, 7), (16, 9, 29)])
def test_tiles_are_no_larger_than_the_network_takes(
    plan_half: Callable[..., Plan], limit: int | None, most: Sides
) -> None:
    """As small as an engine is, the video is covered, with context at every cut; and untiled where it fits."""
    sides = (20, 9, 30)
    options = TilingOptions(memory_limit=limit)
    plan = plan_half(options, latent_shape(sides), GRID, DECODER, videos=3, largest=Largest(most, 2))
    free = plan_half(options, latent_shape(sides), GRID, DECODER, videos=3)
    axes = (plan.tiles.time, plan.tiles.rows, plan.tiles.columns)
    read = [[span.stop - span.start for span in axis.reads] for axis in axes]
    whole = [
        [span.stop - span.start for span in axis.reads]
        for axis in (free.tiles.time, free.tiles.rows, free.tiles.columns)
    ]
    if plan_half is plan_decoder:
        assert all(size <= side for spans, side in zip(read, most, strict=True) for size in spans)
    if most == sides:
        assert (read, plan.videos) == (whole, min(free.videos, 2))
    else:
        assert max(map(len, read)) > 1


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"mode": "off"}, (20, 9, 29)),
        ({}, (20, 9, 6)),
        ({"size": 40}, (20, 9, 9)),
        ({"mode": "diffusers"}, (20, 9, 29)),
    ],
)
def test_tiles_that_an_engine_does_not_take_are_refused(options: dict[str, Any], most: Sides) -> None:
    with pytest.raises(EngineError, match="and the video is 120x36x39; .*--workload 120x36x39"):
        plan_decoder(
            TilingOptions(**options), latent_shape((20, 9, 30)), GRID, DECODER, videos=1, largest=Largest(most, 1)
        )


@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: " ".join(map(str, settings.values())) or "auto")
@pytest.mark.parametrize("decoding", [True, False], ids=["decode", "encode"])
def test_a_network_that_pads_by_mirror_images_gets_no_single_latent(settings: dict[str, Any], decoding: bool) -> None:
    """What is refused is just what would have had one, as the same tiles of another network show."""
    make, plain = (plan_decoder, DECODER) if decoding else (plan_encoder, ENCODER)
    unit = 1 if decoding else GRID.spatial
    for sides in itertools.product((1, 6), (1, 2, 5, 7, 9, 10), (4, 8, 13)):
        seen: set[int] = set()

        def network(part: Array, tile: Tile, seen: set[int] = seen) -> Array:
            seen.update(side // unit for side in part.shape[3:])
            return picture(made(tile, decoding=decoding))

        options, shape = TilingOptions(**settings), latent_shape(sides)
        reads = sides if decoding else video_sides(sides)
        list(make(options, shape, GRID, plain, videos=1).run(network, np.zeros((1, 1, *reads), np.float32)))
        mirrors = replace(plain, least_side=2)
        if min(seen) > 1:
            assert make(options, shape, GRID, mirrors, videos=1) == make(options, shape, GRID, plain, videos=1)
            continue
        what = "video" if sides[1] == 1 else "tile"
        with pytest.raises(RequestError, match=f"a {what} of 4 pixels a side; expected at least 8"):
            make(options, shape, GRID, mirrors, videos=1)
