"""The VAE in tiles: mode "diffusers" is `AutoencoderKLLTXVideo`'s own tiling, mode "seamless" is the untiled VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from telecine.condition import Condition
from telecine.shapes import Grid, LatentShape
from telecine.tiling import Footprint, Network, Tile, TilingOptions, plan_decoder, plan_encoder
from telecine.tiling.blended import Blended

Array = npt.NDArray[np.float32]

CHANNELS = 16
GRID = Grid(spatial=32, temporal=8)
ANY = Footprint.decoder(1.0)  # no limit is asked for here
# One pass of convolutions in another order of summation (test_transformer_graph.py).
TOLERANCE = 1e-5
# (tile_size, tile_stride, tile_frames, tile_frame_stride) and latents: along one axis, along all, tiles that end beyond
# the picture, a last tile of one latent, overlaps of a half and more.
CASES = {
    "wide": ((96, 64, 16, 8), (1, 2, 7)),
    "high": ((64, 32, 16, 8), (2, 5, 1)),
    "long": ((512, 448, 16, 8), (6, 2, 3)),
    "long-hop-16": ((512, 448, 24, 16), (8, 1, 2)),
    "all": ((96, 64, 16, 8), (4, 4, 5)),
    "narrow-overlap": ((128, 96, 32, 24), (9, 5, 5)),
    "no-overlap": ((64, 64, 16, 16), (5, 3, 4)),
    "none-needed": ((96, 64, 16, 8), (2, 3, 3)),
}


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def options(mode: str, sizes: tuple[int, int, int, int]) -> TilingOptions:
    size, stride, frames, hop = sizes
    return TilingOptions(mode=mode, size=size, stride=stride, frames=frames, frame_stride=hop)


def shape_of(latent: tuple[int, int, int]) -> LatentShape:
    return LatentShape(frames=latent[0], height=latent[1], width=latent[2])


@pytest.fixture(scope="module")
def decoder(pair: Any) -> Network:
    session = pair.ours._models.session("vae_decoder")

    def run(latents: Array, tile: Tile) -> Array:
        timestep = np.full(len(latents), 0.05, np.float32)
        video: Array = session.run({"latents": latents, "timestep": timestep})["video"]
        return video

    return run


@pytest.fixture(scope="module")
def encoder(pair: Any) -> Network:
    session = pair.ours._models.session("vae_encoder")
    return lambda video, tile: session.run({"video": video})["moments"]


def joined(pieces: Iterator[Array]) -> Array:
    return np.concatenate(list(pieces), axis=2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_decoding_as_diffusers(pair: Any, diffusers_tiling: Any, decoder: Network, case: Any) -> None:
    sizes, latent = case
    latents = draw(2, CHANNELS, *latent)
    with diffusers_tiling(pair.theirs.vae, sizes):
        theirs = pair.theirs.vae.decode(torch.from_numpy(latents), torch.full((2,), 0.05)).sample.numpy()
    plan = plan_decoder(options("diffusers", sizes), shape_of(latent), GRID, ANY, videos=2)
    np.testing.assert_allclose(joined(plan.run(decoder, latents)), theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_encoding_as_diffusers(pair: Any, diffusers_tiling: Any, encoder: Network, case: Any) -> None:
    sizes, latent = case
    frames, height, width = latent
    video = np.tanh(draw(1, 3, 8 * frames - 7, 32 * height, 32 * width))
    with diffusers_tiling(pair.theirs.vae, sizes):
        theirs = pair.theirs.vae.encode(torch.from_numpy(video)).latent_dist.parameters[:, : CHANNELS + 1].numpy()
    plan = plan_encoder(options("diffusers", sizes), shape_of(latent), GRID, ANY, videos=1)
    np.testing.assert_allclose(joined(plan.run(encoder, video)), theirs, atol=TOLERANCE, rtol=0)


def test_default_sizes_are_diffusers(pair: Any) -> None:
    vae = pair.theirs.vae
    plan = plan_decoder(TilingOptions(mode="diffusers"), shape_of((9, 40, 40)), GRID, ANY, videos=1)
    fresh = type(vae)()
    assert isinstance(plan.tiles, Blended)
    space, time = plan.tiles.rows, plan.tiles.time
    assert plan.tiles.columns == space
    assert (space.size * 32, space.keep) == (fresh.tile_sample_min_height, fresh.tile_sample_stride_width)
    assert (time.size * 8, time.keep) == (fresh.tile_sample_min_num_frames, fresh.tile_sample_stride_num_frames)


# Seamless


# The tiny decoder sees 7.1 latents to each side, its encoder 7.3 and in time 14 back: with that much context, tiles are
# the untiled network. A third of an overlap is context, so an overlap of 3 * 8 latents has it.
@pytest.mark.parametrize("latent", [(1, 1, 27), (1, 27, 1), (27, 1, 1)], ids=["columns", "rows", "frames"])
def test_decoding_with_context_for_its_receptive_field_is_exact(
    pair: Any, decoder: Network, latent: tuple[int, int, int]
) -> None:
    latents = draw(1, CHANNELS, *latent)
    whole = decoder(latents, None)  # type: ignore[arg-type]
    wanted = options("seamless", (26 * 32, 32, 26 * 8, 8))
    plan = plan_decoder(wanted, shape_of(latent), GRID, ANY, videos=1)
    np.testing.assert_allclose(joined(plan.run(decoder, latents)), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("latent", [(1, 1, 27), (1, 27, 1), (25, 1, 1)], ids=["columns", "rows", "frames"])
def test_encoding_with_context_for_its_receptive_field_is_exact(
    pair: Any, encoder: Network, latent: tuple[int, int, int]
) -> None:
    frames, height, width = latent
    video = np.tanh(draw(1, 3, 8 * frames - 7, 32 * height, 32 * width))
    whole = encoder(video, None)  # type: ignore[arg-type]
    wanted = options("seamless", (26 * 32, 32, 24 * 8, 8))
    plan = plan_encoder(wanted, shape_of(latent), GRID, ANY, videos=1)
    np.testing.assert_allclose(joined(plan.run(encoder, video)), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [10, 12, 16])
def test_default_context_hides_the_seams(
    pair: Any, decoder: Network, size: int, record_property: Callable[[str, object], None]
) -> None:
    """White latents through random weights, which see farther than trained ones (issue: 40 dB on real pictures)."""
    latents = draw(1, CHANNELS, 1, 4, 22)
    whole = decoder(latents, None)  # type: ignore[arg-type]
    wanted = TilingOptions(mode="seamless", size=32 * size)
    plan = plan_decoder(wanted, shape_of((1, 4, 22)), GRID, ANY, videos=1)
    apart = (np.clip(joined(plan.run(decoder, latents)), -1, 1) - np.clip(whole, -1, 1)) / 2
    psnr = -10 * np.log10(np.mean(apart**2))
    record_property("measured", f"seamless tiles of {size} latents on the tiny VAE: {psnr:.1f} dB")
    assert psnr >= 40


# Whole runs

REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "height": 96,
    "width": 160,
    "num_frames": 33,
    "num_inference_steps": 2,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}


@pytest.mark.parametrize("change", [{}, {"prompt": ["a blue cube", "the camera"]}], ids=["one", "batch-2"])
def test_whole_runs_as_diffusers(pair: Any, diffusers_tiling: Any, change: dict[str, Any]) -> None:
    with diffusers_tiling(pair.theirs.vae, (64, 32, 16, 8)):
        theirs = pair.run_theirs(**REQUEST | change)
    tiles = {"tiling": "diffusers", "tile_size": 64, "tile_stride": 32, "tile_frames": 16, "tile_frame_stride": 8}
    pair.assert_close(pair.run_ours(**REQUEST | change, **tiles), theirs)
    assert pair.compare(pair.run_ours(**REQUEST | change), theirs).excess() > 10  # its seams are no rounding


@pytest.mark.parametrize("size", [64, 96])
def test_conditions_are_encoded_in_tiles_as_diffusers(condition_pair: Any, diffusers_tiling: Any, size: int) -> None:
    """A video to extend and a keyframe: diffusers' tiling cuts what is encoded, too."""
    random = np.random.default_rng(0)
    conditions = [
        Condition(video=random.integers(0, 256, (17, 96, 160, 3), dtype=np.uint8)),
        Condition(image=random.integers(0, 256, (96, 160, 3), dtype=np.uint8), frame_index=24, strength=0.7),
    ]
    request = REQUEST | {"conditions": conditions}
    with diffusers_tiling(condition_pair.theirs.vae, (size, 32, 16, 8)):
        theirs = condition_pair.run_theirs(**request)
    tiles = {"tiling": "diffusers", "tile_size": size, "tile_stride": 32, "tile_frames": 16, "tile_frame_stride": 8}
    condition_pair.assert_close(condition_pair.run_ours(**request, **tiles), theirs)


def test_seamless_tiles_hold_a_first_frame_as_well(image_pair: Any) -> None:
    """At the tiny VAE's 40 dB and more, encoded and decoded: the network itself sees what it saw without tiles."""
    image = np.random.default_rng(1).integers(0, 256, (96, 352, 3), dtype=np.uint8)
    request = REQUEST | {"image": image, "width": 352, "num_frames": 9}
    whole = image_pair.run_ours(**request)
    tiled = image_pair.run_ours(**request, tiling="seamless", tile_size=320)
    assert 40 <= -10 * np.log10(np.mean((tiled - whole) ** 2)) < 120
