"""Pixels of an image, of conditions and of what H.264 leaves, against diffusers' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2ConditionPipeline
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf
from diffusers.video_processor import VideoProcessor
from PIL import Image

from telecine import Condition
from telecine.errors import BackendError, RequestError
from telecine.families.ltx2.conditions import items, latent_index
from telecine.families.ltx2.images import first_frame
from telecine.interpolate import bilinear
from telecine.shapes import Grid, VideoShape
from telecine.video.recompress import recompress

GRID = Grid(spatial=32, temporal=8)
CLIP = VideoShape(num_frames=25, height=64, width=96)
RANDOM = np.random.default_rng(0)


def picture(height: int, width: int, frames: int = 1) -> np.ndarray:
    """(F, H, W, 3) bytes: waves and noise."""
    frame, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = np.stack([128 + 90 * np.sin((a * x + b * y) / 7 + frame) for a, b in ((1, 0), (0, 1), (1, 1))], axis=-1)
    return (waves + RANDOM.integers(0, 30, waves.shape)).clip(0, 255).astype(np.uint8)


def preprocessed(conditions: Any) -> list[np.ndarray]:
    """What diffusers makes of conditions, whose other attributes it does not ask for."""
    pipeline = SimpleNamespace(
        vae_temporal_compression_ratio=8, vae=SimpleNamespace(dtype=torch.float32), text_encoder=None
    )
    pipeline.trim_conditioning_sequence = LTX2ConditionPipeline.trim_conditioning_sequence.__get__(pipeline)
    frames, *_ = LTX2ConditionPipeline.preprocess_conditions(
        pipeline, conditions, height=CLIP.height, width=CLIP.width, num_frames=CLIP.num_frames, device="cpu"
    )
    return [each.numpy() for each in frames]


@pytest.mark.parametrize("size", [(64, 96), (50, 120), (200, 70), (33, 35), (1, 1)])
@pytest.mark.parametrize("crf", [0, 33, 10])
def test_the_image_of_image_to_video(size: tuple[int, int], crf: int) -> None:
    if crf:
        pytest.importorskip("av")
        if 1 in size:  # nothing is left of a side of 1
            return
    image = picture(*size)[0]
    compressed = apply_image_conditioning_crf(image, crf)
    processor = VideoProcessor(vae_scale_factor=32, resample="bilinear")
    theirs = processor.preprocess(Image.fromarray(compressed), height=64, width=96)
    np.testing.assert_array_equal(first_frame(image, 64, 96, crf)[:, :, 0], theirs.numpy())


def test_an_image_is_compressed_as_in_training_unless_told() -> None:
    pytest.importorskip("av")
    image = picture(40, 60)[0]
    np.testing.assert_array_equal(first_frame(image, 64, 96, None), first_frame(image, 64, 96, 33))
    assert np.abs(first_frame(image, 64, 96, 33) - first_frame(image, 64, 96, 0)).max() > 0.05


@pytest.mark.parametrize("crf", [1, 18, 33, 51])
def test_compression_is_diffusers_bit_for_bit(crf: int) -> None:
    pytest.importorskip("av")
    image = picture(51, 70)[0]
    np.testing.assert_array_equal(recompress(image, crf), apply_image_conditioning_crf(image, crf))


def test_without_pyav_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    image = picture(8, 8)[0]
    with pytest.raises(BackendError, match="PyAV"):
        recompress(image, 33)
    np.testing.assert_array_equal(recompress(image, 0), image)


def test_floats_are_not_compressed() -> None:
    image = picture(40, 60)[0] / np.float32(255)
    with pytest.raises(RequestError, match="crf 0"):
        first_frame(image, 64, 96, None)
    np.testing.assert_allclose(
        first_frame(image, 64, 96, 0), first_frame(picture(40, 60)[0], 64, 96, 0), rtol=0, atol=0.3
    )


# Float32 sums in another order than torch's vectors.
@pytest.mark.parametrize("old", [(5, 7), (64, 96), (1, 1), (130, 41)])
@pytest.mark.parametrize("new", [(9, 4), (64, 96), (1, 3), (200, 201)])
def test_bilinear_is_torchs(old: tuple[int, int], new: tuple[int, int]) -> None:
    frames = RANDOM.uniform(0, 255, (2, *old, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2), size=new, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(bilinear(frames, *new), theirs.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (50, 120), (200, 70), (33, 35), (300, 211)])
def test_the_pixels_of_conditions(size: tuple[int, int]) -> None:
    pytest.importorskip("av")
    image, video = picture(*size)[0], picture(*size, frames=11)
    theirs = preprocessed(
        [
            LTX2VideoCondition(frames=Image.fromarray(image)),
            LTX2VideoCondition(frames=Image.fromarray(image), index=2, crf=0),
            LTX2VideoCondition(frames=video, index=-2),
            LTX2VideoCondition(frames=video, index=-1),  # 8 frames are left of the clip, of which 1 is used
            LTX2VideoCondition(frames=list(map(Image.fromarray, video))),
        ]
    )
    ours = items(
        [
            Condition(image=image),
            Condition(image=image, index=2, crf=0),
            Condition(video=video, index=-2),
            Condition(video=video, index=-1),
            Condition(video=video),
        ],
        CLIP,
        GRID,
    )
    assert [item.index for item in ours] == [0, 2, 2, 3, 0]
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.pixels.shape == their.shape
        np.testing.assert_allclose(mine.pixels, their, rtol=0, atol=1e-6)


def test_floats_are_the_same_picture_as_bytes() -> None:
    image = picture(50, 70)[0]
    pair = items([Condition(image=image, crf=0), Condition(image=image / np.float32(255), crf=0)], CLIP, GRID)
    np.testing.assert_allclose(pair[1].pixels, pair[0].pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, 0),
        ({"index": 3}, 3),
        ({"index": -1}, 3),
        ({"index": -4}, 0),
        ({"frame_index": 1}, 1),
        ({"frame_index": 17}, 3),
    ],
)
def test_where_a_condition_stands(condition: dict[str, int], expected: int) -> None:
    assert latent_index(Condition(image="a.png", **condition), 4, GRID) == expected


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ({"index": 4}, "-4 to 3"),
        ({"index": -5}, "-4 to 3"),
        ({"frame_index": 8}, "frame_index=1,"),
        ({"frame_index": 25}, "to 3"),
    ],
)
def test_a_place_where_no_latent_begins_is_refused(condition: dict[str, int], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        latent_index(Condition(image="a.png", **condition), 4, GRID)


def test_a_video_is_not_compressed_and_says_so() -> None:
    with pytest.raises(RequestError, match="crf"):
        items([Condition(video=picture(8, 8, frames=9), crf=20)], CLIP, GRID)


def test_what_is_no_condition_is_refused() -> None:
    with pytest.raises(RequestError, match="dict"):
        items([{"image": "a.png"}], CLIP, GRID)  # type: ignore[list-item]
