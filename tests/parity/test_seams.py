"""Tiles of the demo model's VAE leave no seams: on its own clips, PSNR against the untiled VAE.

The issue asks 40 dB of three sizes of tile. A trained network sees little of what is more than `CONTEXT` latents away:
tiles of 7 latents, the smallest, measure 63 dB on generated clips (58 in the worst frame), 70 on drawn ones; tiles of
12, 79 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from demo_model.data import combinations, render, sample_scene

import telecine
from telecine.families.ltx_video.encode import encode_moments
from telecine.families.ltx_video.host import Host
from telecine.shapes import LatentShape
from telecine.tiling import Network, Tile, TilingOptions, plan_decoder, plan_encoder
from telecine.tiling.plan import CONTEXT

Array = npt.NDArray[np.float32]

WHOLE, WORST_FRAME = 55, 50  # dB
# Latents: cut along rows and columns, and along time.
WIDE, LONG, BOTH = (1, 8, 22), (13, 3, 3), (8, 8, 8)
SMALLEST = 2 * CONTEXT + 1
SIZES = (SMALLEST, 8, 12)  # of tiles, in latents


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[telecine.Pipeline]:
    with telecine.load(demo_bundle) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def host(pipe: telecine.Pipeline) -> Host:
    return Host.parse(pipe.bundle.manifest.host)


@pytest.fixture(scope="module")
def decoder(pipe: telecine.Pipeline) -> Network:
    session = pipe._models.session("vae_decoder")

    def run(latents: Array, tile: Tile) -> Array:
        video: Array = session.run({"latents": latents, "timestep": np.full(1, 0.05, np.float32)})["video"]
        return video

    return run


@pytest.fixture(scope="module")
def drawn(host: Host) -> Callable[..., Array]:
    """`drawn((F, H, W))`: (1, 3, frames, height, width) in [-1, 1], a scene as the model was trained on, so large."""

    def draw(latent: tuple[int, int, int]) -> Array:
        video = LatentShape(frames=latent[0], height=latent[1], width=latent[2]).video(host.grid)
        scene = sample_scene(np.random.default_rng(4), combinations(held_out=False))
        pixels, _ = render(scene, frames=video.num_frames, height=video.height, width=video.width)
        return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)[np.newaxis], dtype=np.float32)

    return draw


@pytest.fixture(scope="module")
def clips(pipe: telecine.Pipeline, host: Host, drawn: Callable[..., Array]) -> Callable[..., Array]:
    """`clips("drawn" or "generated", (F, H, W))`: (1, C, F, H, W) latents of the VAE's scale, made once."""
    kept: dict[Any, Array] = {}

    def make(kind: str, latent: tuple[int, int, int]) -> Array:
        if (kind, latent) not in kept:
            kept[kind, latent] = encoded(latent) if kind == "drawn" else generated(latent)
        return kept[kind, latent]

    def encoded(latent: tuple[int, int, int]) -> Array:
        moments = encode_moments(pipe._models, host, drawn(latent), TilingOptions(mode="off"))
        return np.ascontiguousarray(moments[:, : host.latent_channels])

    def generated(latent: tuple[int, int, int]) -> Array:
        shape = LatentShape(frames=latent[0], height=latent[1], width=latent[2])
        video = shape.video(host.grid)
        packed = pipe.generate(
            "a red ball rolls to the left over a green floor",
            height=video.height,
            width=video.width,
            num_frames=video.num_frames,
            num_inference_steps=6,
            guidance_scale=5.0,
            seed=0,
            output_type="latent",
        ).latents
        assert packed is not None
        tokens = packed.reshape(1, *latent, -1)  # (B, F, H, W, C)
        return host.denormalize(np.ascontiguousarray(np.moveaxis(tokens, -1, 1)))

    return make


def options(size: int, latent: tuple[int, int, int]) -> TilingOptions:
    """Tiles of `size` latents along every axis that is longer."""
    long = latent[0] > size
    wide = max(latent[1:]) > size
    return TilingOptions(mode="seamless", size=32 * (size if wide else 64), frames=8 * (size if long else 64))


def psnr(ours: Array, whole: Array) -> float:
    """Of videos in [-1, 1]; more than what float32 can show counts as 150."""
    error = float(np.mean((np.clip(ours, -1, 1) - np.clip(whole, -1, 1)) ** 2, dtype=np.float64)) / 4
    return -10 * float(np.log10(max(error, 1e-15)))


def joined(pieces: Iterator[Array]) -> Array:
    return np.concatenate(list(pieces), axis=2)


def shape_of(latent: tuple[int, int, int]) -> LatentShape:
    return LatentShape(frames=latent[0], height=latent[1], width=latent[2])


@pytest.mark.parametrize(
    ("latent", "kind", "sizes"),
    [
        (WIDE, "drawn", SIZES), (WIDE, "generated", SIZES), (LONG, "drawn", SIZES), (LONG, "generated", SIZES),
        (BOTH, "generated", [SMALLEST]),
    ],
)  # fmt: skip
def test_decoding(
    latent: tuple[int, int, int],
    kind: str,
    sizes: list[int],
    host: Host,
    decoder: Network,
    clips: Callable[..., Array],
    record_property: Callable[[str, object], None],
) -> None:
    latents = clips(kind, latent)
    whole = decoder(latents, None)  # type: ignore[arg-type]
    assert whole.std() / 2 >= 0.05
    found = []
    for size in sizes:
        plan = plan_decoder(options(size, latent), shape_of(latent), host.grid, host.decoder, videos=1)
        tiles: Any = plan.tiles
        for axis, side in zip((tiles.time, tiles.rows, tiles.columns), latent, strict=True):
            assert (len(axis.reads) > 1) == (side > size)
        assert max(latent) > size, "nothing is cut"
        made = joined(plan.run(decoder, latents))
        worst = min(psnr(made[:, :, frame], whole[:, :, frame]) for frame in range(whole.shape[2]))
        found.append((psnr(made, whole), worst))
    record_property("measured", f"seams of a {kind} clip of {latent} latents (dB, worst frame): {found}")
    assert all(mean >= WHOLE and worst >= WORST_FRAME for mean, worst in found), found


@pytest.mark.parametrize("latent", [WIDE, LONG], ids=["wide", "long"])
def test_encoding(
    latent: tuple[int, int, int],
    pipe: telecine.Pipeline,
    host: Host,
    decoder: Network,
    drawn: Callable[..., Array],
    clips: Callable[..., Array],
    record_property: Callable[[str, object], None],
) -> None:
    """What a clip that was encoded in tiles looks like, decoded whole."""
    session = pipe._models.session("vae_encoder")
    video, latents = drawn(latent), clips("drawn", latent)
    whole = decoder(latents, None)  # type: ignore[arg-type]
    found = []
    for size in SIZES:
        plan = plan_encoder(options(size, latent), shape_of(latent), host.grid, host.encoder, videos=1)
        moments = joined(plan.run(lambda part, _: session.run({"video": part})["moments"], video))
        means = np.ascontiguousarray(moments[:, : host.latent_channels])
        assert not np.array_equal(means, latents), "nothing is cut"
        found.append(psnr(decoder(means, None), whole))  # type: ignore[arg-type]
    record_property("measured", f"a drawn clip of {latent} latents, encoded in tiles: {found} dB")
    assert min(found) >= WHOLE, found
