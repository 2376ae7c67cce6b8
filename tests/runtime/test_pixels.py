"""Oracle: diffusers' VideoProcessor and numpy_to_pil, compared bit for bit."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from PIL import Image

from telecine.pixels import to_signed_range, to_uint8, to_unit_range

SHAPES = [(1, 3, 1, 2, 2), (2, 3, 9, 5, 7), (1, 3, 17, 32, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_range_matches_diffusers(shape: tuple[int, ...]) -> None:
    # decoders overshoot: about a third of a standard normal lies outside [-1, 1]
    video = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    kept = video.copy()
    frames = to_unit_range(video)
    expected = VideoProcessor(vae_scale_factor=32).postprocess_video(torch.from_numpy(kept), output_type="np")
    assert frames.shape == (shape[0], *shape[2:], 3)
    assert frames.dtype == np.float32
    assert frames.flags.c_contiguous
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(video, kept)


def test_unit_range_of_a_strided_video() -> None:
    video = np.random.default_rng(0).standard_normal((2, 9, 5, 7, 3), dtype=np.float32)
    view = video.transpose(0, 4, 1, 2, 3)
    np.testing.assert_array_equal(to_unit_range(view), to_unit_range(np.ascontiguousarray(view)))


def test_unit_range_does_not_hide_nan() -> None:
    assert np.isnan(to_unit_range(np.full((1, 3, 1, 2, 2), np.nan, np.float32))).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_uint8_matches_diffusers(shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(1).random((shape[0], *shape[2:], 3), dtype=np.float32)
    kept = frames.copy()
    result = to_uint8(frames)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    for ours, theirs in zip(result, frames, strict=True):
        pictures = VaeImageProcessor.numpy_to_pil(theirs)
        np.testing.assert_array_equal(ours, np.stack([np.asarray(picture) for picture in pictures]))
    np.testing.assert_array_equal(frames, kept)


def test_uint8_rounds_half_to_even() -> None:
    halves = (np.arange(255, dtype=np.float32) + np.float32(0.5)) / np.float32(255)
    scaled = halves * np.float32(255)
    assert (scaled % 1 == 0.5).sum() > 200  # most stay exact halves: the test sees ties
    expected = np.array([round(float(value)) for value in scaled])
    frames = np.repeat(halves, 3).reshape(1, 1, 1, 255, 3)
    np.testing.assert_array_equal(to_uint8(frames)[0, 0, 0, :, 1], expected)


@pytest.mark.parametrize(("value", "byte"), [(0.0, 0), (1.0, 255)])
def test_uint8_ends(value: float, byte: int) -> None:
    assert (to_uint8(np.full((1, 1, 2, 2, 3), value, np.float32)) == byte).all()


def test_signed_range_of_bytes_matches_diffusers() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    expected = VideoProcessor(vae_scale_factor=1).preprocess_video(images, height=5, width=7).numpy()
    video = to_signed_range(frames)
    assert video.shape == (1, 3, 3, 5, 7)
    assert video.flags.c_contiguous
    np.testing.assert_array_equal(video, expected)


def test_signed_range_of_floats_leaves_them_as_they_were() -> None:
    frames = np.random.default_rng(3).random((2, 3, 4, 3), dtype=np.float32)
    kept = frames.copy()
    np.testing.assert_array_equal(to_signed_range(frames)[0].transpose(1, 2, 3, 0), kept * 2 - 1)
    np.testing.assert_array_equal(frames, kept)
