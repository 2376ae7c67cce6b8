"""Sizes from the command line, on the bundle's grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.bundle import Bundle
from telecine.errors import EngineError
from telecine.shapes import VideoShape
from telecine_engines.workloads import parse_workloads


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_one_size(bundle: Bundle) -> None:
    (workload,) = parse_workloads(["768x512x121"], bundle)
    assert workload.low == workload.high == VideoShape(num_frames=121, height=512, width=768)
    assert workload.videos == (1, 1)
    assert workload.tile == VideoShape(num_frames=121, height=512, width=512)
    assert workload.keyframes == 4


def test_batches(bundle: Bundle) -> None:
    parsed = parse_workloads(["64x96x9@b3", "64x96x9@b1..2"], bundle)
    assert [workload.videos for workload in parsed] == [(3, 3), (1, 2)]


def test_the_ends_of_a_range_come_down_to_the_grid(bundle: Bundle) -> None:
    (workload,) = parse_workloads(["500x20x9..1280x720x260"], bundle)
    assert workload.low == VideoShape(num_frames=9, height=32, width=480)
    assert workload.high == VideoShape(num_frames=257, height=704, width=1280)


@pytest.mark.parametrize("text", ["768x512x121@b1", "64x96x9..768x512x121@b1..2"])
def test_text_reads_back(bundle: Bundle, text: str) -> None:
    (workload,) = parse_workloads([text], bundle)
    assert str(workload) == text
    assert parse_workloads([str(workload)], bundle) == [workload]


def test_none_is_every_size_up_to_the_recommended_one(bundle: Bundle) -> None:
    (workload,) = parse_workloads([], bundle)
    recommended = bundle.manifest.presets["recommended"]
    assert workload.low == VideoShape(num_frames=1, height=32, width=32)
    assert (workload.high.width, workload.high.height) == (recommended["width"], recommended["height"])
    assert workload.high.num_frames == recommended["num_frames"]


def test_without_a_preset_a_size_must_be_given(tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="no preset 'recommended'"):
        parse_workloads([], Bundle.open(edited_bundle(tiny_bundle, presets={})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("768x512", "expected WIDTHxHEIGHTxFRAMES"),
        ("768x512x121@2", "expected WIDTHxHEIGHTxFRAMES"),
        ("768x500x121", "height is 500; expected a positive multiple of 32. Use 480 or 512"),
        ("768x512x120", "120 frames; expected 8\\*k\\+1. Use 113 or 121"),
        ("768x512x0", "num_frames is 0"),
        ("768x512x121..512x512x121", "nothing is in this range"),
        ("768x512x121@b2..1", "nothing is in this range"),
        ("768x512x121@b0", "nothing is in this range"),
    ],
)
def test_what_is_refused(bundle: Bundle, text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_workloads([text], bundle)


def test_tiles_and_keyframes_that_cannot_be_are_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="VAE tile '512x512'"):
        parse_workloads(["64x96x9"], bundle, vae_tile="512x512")
    with pytest.raises(EngineError, match="keyframes -1"):
        parse_workloads(["64x96x9"], bundle, keyframes=-1)


@pytest.fixture(scope="module")
def cog(cogvideox: Callable[[str], tuple[Path, Path]]) -> Bundle:
    return Bundle.open(cogvideox("2b")[1])


def test_sizes_of_cogvideox_are_whole_tokens_and_chunks(cog: Bundle) -> None:
    """16 pixels a token; 8k+1 frames of an odd number of latents, 8k of an even one. The VAE gets the whole video."""
    (workload,) = parse_workloads(["24x20x5..100x100x22@b2"], cog)
    assert workload.low == VideoShape(num_frames=1, height=16, width=16)
    assert workload.high == workload.tile == VideoShape(num_frames=17, height=96, width=96)
    (even,) = parse_workloads(["32x32x16"], cog, vae_tile="240x250x9")
    assert (even.high.num_frames, even.tile) == (16, VideoShape(num_frames=9, height=240, width=240))
    with pytest.raises(EngineError, match=r"32x32x12: 12 frames; expected 8\*k\+1, or 8\*k. Use 9 or 16"):
        parse_workloads(["32x32x12"], cog)
    with pytest.raises(EngineError, match="32x40x9: height is 40; expected a positive multiple of 16"):
        parse_workloads(["32x40x9"], cog)
    with pytest.raises(EngineError, match="keyframes 4; expected none: cogvideox takes no conditions"):
        parse_workloads(["32x32x9"], cog, keyframes=4)


def test_cogvideox_recommends_its_sample_s_size(cog: Bundle) -> None:
    (workload,) = parse_workloads([], cog)
    sample = cog.manifest.host["sample"]
    assert workload.low == VideoShape(num_frames=1, height=16, width=16)
    assert workload.high == VideoShape(**sample)
