"""`Pipeline.upscale` makes, without torch, the frames that `diffusers.LTXLatentUpsamplePipeline` makes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import LTXLatentUpsamplePipeline

import telecine
from telecine.errors import BundleError, RequestError
from telecine.resample import BICUBIC, resize

DECODE = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}


def latents(batch: int, frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 16, frames, height, width), dtype=np.float32)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """(F, H, W, 3) bytes that move: noise, enlarged."""
    coarse = np.random.default_rng(frames).integers(0, 256, (frames, 5, 7, 3), dtype=np.uint8)
    return resize(coarse, height, width, BICUBIC)


def _reference(path: Path) -> Any:
    pipeline: Any = LTXLatentUpsamplePipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def spatial(upscaling_of: Callable[..., Any], upscaler_bundle: Path, tiny_upscaler: Path) -> Any:
    return upscaling_of(upscaler_bundle, _reference(tiny_upscaler))


@pytest.fixture(scope="module")
def temporal(upscaling_of: Callable[..., Any], temporal_bundle: Path, temporal_upscaler: Path) -> Any:
    """A decoder without a timestep, too."""
    return upscaling_of(temporal_bundle, _reference(temporal_upscaler))


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("request_", table.values(), ids=table.keys())


@cases(
    {
        "as-is": {"latents": latents(1, 2, 2, 3), "seed": 0},
        "one-frame": {"latents": latents(1, 1, 3, 1), "seed": 1} | DECODE,
        "batch-2-odd": {"latents": latents(2, 3, 1, 3), "seed": 0} | DECODE,
        "seed-list": {"latents": latents(2, 2, 2, 1), "seed": [3, 4], "decode_timestep": [0.05, 0.1]},
        "adain": {"latents": latents(1, 2, 2, 3), "adain_factor": 1.0, "seed": 0} | DECODE,
        "adain-batch": {"latents": latents(2, 2, 1, 2), "adain_factor": 0.4, "seed": [5, 5]} | DECODE,
        "tone-map": {"latents": latents(1, 2, 2, 3), "tone_map_compression_ratio": 0.6, "seed": 0} | DECODE,
        "both": {"latents": latents(2, 2, 2, 2), "adain_factor": 1.0, "tone_map_compression_ratio": 1.0, "seed": 0},
        "latent": {"latents": latents(2, 3, 3, 2), "adain_factor": 0.7, "output_type": "latent"},
        "bytes": {"latents": latents(1, 2, 2, 2), "seed": 0, "output_type": "uint8"} | DECODE,
    }
)
def test_latents(spatial: Any, request_: dict[str, Any]) -> None:
    spatial.assert_same(**request_)


@cases(
    {
        "as-is": {"video": clip(9, 64, 96), "seed": 0} | DECODE,
        "resized": {"video": clip(9, 50, 120), "height": 32, "width": 64, "seed": 2} | DECODE,
        "cut-to-9": {"video": clip(12, 64, 96), "seed": 0, "output_type": "latent"},
        "one-frame": {"video": clip(1, 32, 96), "seed": 0, "adain_factor": 1.0} | DECODE,
        "adain-tone-map": {
            "video": clip(9, 64, 32), "adain_factor": 0.6, "tone_map_compression_ratio": 0.5, "seed": 7,
        },
    }
)  # fmt: skip
def test_videos(spatial: Any, request_: dict[str, Any]) -> None:
    """Posterior first, then the decoder's noise, from one generator."""
    spatial.assert_same(**request_)


def test_float_frames(spatial: Any) -> None:
    frames = (clip(9, 32, 64) / 255).astype(np.float32)
    theirs = spatial.run_theirs(video=frames[np.newaxis], height=32, width=64, seed=0, output_type="latent")
    spatial.assert_close(spatial.run_ours(video=frames, seed=0, output_type="latent"), theirs)


@cases(
    {
        "latents": {"latents": latents(2, 3, 2, 1), "adain_factor": 1.0},
        "one-frame-stays-one": {"latents": latents(1, 1, 2, 3)},
        "video": {"video": clip(17, 32, 64), "seed": 0, "tone_map_compression_ratio": 0.6},
    }
)
def test_temporal_upsampler(temporal: Any, request_: dict[str, Any]) -> None:
    temporal.assert_same(**request_)


def test_what_came_out_goes_in_again(spatial: Any) -> None:
    once = spatial.run_ours(latents=latents(1, 2, 1, 2), output_type="latent")
    assert once.shape == (1, 16, 2, 2, 4)
    assert spatial.run_ours(latents=once, output_type="latent").shape == (1, 16, 2, 4, 8)


def test_frame_rates_keep_the_duration(spatial: Any, temporal: Any, tmp_path: Path) -> None:
    file = tmp_path / "clip.gif"
    telecine.video.save_video(clip(9, 32, 32), file, frame_rate=10)
    small = {"output_type": "latent", "seed": 0}
    assert spatial.ours.upscale(file, **small).frame_rate == 10
    assert temporal.ours.upscale(file, **small).frame_rate == 20
    assert temporal.ours.upscale(file, frame_rate=12, **small).frame_rate == 12
    assert spatial.ours.upscale(latents=latents(1, 1, 1, 2), **small).frame_rate == 25


def test_eight_frames_are_one(spatial: Any, caplog: pytest.LogCaptureFixture) -> None:
    """diffusers keeps all 16 of 16 frames, which its encoder cannot take."""
    with caplog.at_level(logging.WARNING, "telecine"):
        made = spatial.run_ours(video=clip(8, 32, 32), output_type="latent", seed=0)
    assert made.shape == (1, 16, 1, 2, 2)
    assert "8 frames are not 8*k+1: upscaling the first 1" in caplog.text


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "neither video nor latents"),
        ({"video": clip(1, 32, 32), "latents": latents(1, 1, 1, 1)}, "both video and latents"),
        ({"video": clip(1, 32, 40)}, "width is 40"),
        ({"video": clip(1, 32, 32), "height": 33}, "height is 33"),
        ({"video": clip(1, 32, 32), "height": 2**25, "width": 2**25}, "at most"),
        ({"video": clip(1, 32, 32), "seed": [1, 2]}, "2 seeds"),
        ({"latents": latents(1, 1, 1, 2), "height": 64}, "height is 64; expected 32"),
        ({"latents": latents(1, 1, 1, 2)[0]}, r"shape \(16, 1, 1, 2\)"),
        ({"latents": latents(1, 1, 1, 2)[:, :8]}, "8 channels"),
        ({"latents": np.full((1, 16, 1, 1, 1), np.inf)}, "NaN or infinity"),
        ({"latents": latents(1, 1, 1, 1), "adain_factor": 1.0}, "AdaIN of a single latent"),
        ({"latents": latents(1, 1, 1, 2), "adain_factor": -0.5}, "adain_factor is -0.5"),
        ({"latents": latents(1, 1, 1, 2), "tone_map_compression_ratio": 1.5}, "a number from 0 to 1"),
        ({"latents": latents(1, 1, 1, 2), "frame_rate": 0}, "frame_rate is 0"),
        ({"latents": latents(1, 1, 1, 2), "output_type": "pil"}, "output_type is 'pil'"),
        ({"latents": latents(2, 1, 1, 2), "decode_timestep": [0.1] * 3}, "decode_timestep"),
    ],
)
def test_refusals(spatial: Any, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        spatial.ours.upscale(**request_)


def test_a_bundle_without_an_upsampler_says_how_to_get_one(pair: Any) -> None:
    with pytest.raises(BundleError, match="--upscaler"):
        pair.ours.upscale(latents=latents(1, 1, 1, 2))


@pytest.mark.parametrize(
    "request_",
    [{"video": clip(17, 64, 96)}, {"latents": latents(2, 3, 2, 3)}],
    ids=["video", "latents"],
)
def test_tiles_as_diffusers(spatial: Any, diffusers_tiling: Any, request_: dict[str, Any]) -> None:
    """Of what is encoded and of what is decoded; `enable_tiling` of its VAE."""
    with diffusers_tiling(spatial.theirs.vae, (64, 32, 16, 8)):
        theirs = spatial.run_theirs(**request_, seed=0, **DECODE)
    tiles = {"tiling": "diffusers", "tile_size": 64, "tile_stride": 32, "tile_frames": 16, "tile_frame_stride": 8}
    spatial.assert_close(spatial.run_ours(**request_, seed=0, **DECODE, **tiles), theirs)


def test_a_stream_gives_the_same_frames_in_pieces(spatial: Any) -> None:
    request = {"latents": latents(1, 9, 1, 2), "seed": 0, "tiling": "seamless", "tile_frames": 64}
    pieces = list(spatial.ours.stream_upscaled(**request))
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), spatial.run_ours(**request))


def test_a_memory_limit_is_of_the_large_video(spatial: Any) -> None:
    with pytest.raises(RequestError, match="memory_limit is 1MiB"):
        spatial.ours.upscale(latents=latents(1, 2, 2, 2), memory_limit="1MiB")
