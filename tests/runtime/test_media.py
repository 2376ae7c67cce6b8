"""Images and videos that callers pass: against PIL and diffusers' preprocessing, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.video_processor import VideoProcessor
from PIL import Image

from telecine.condition import Condition
from telecine.errors import BackendError, RequestError
from telecine.media import load_image, load_video, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def diffusers_pixels(images: list[Image.Image], height: int, width: int) -> np.ndarray:
    return VideoProcessor(vae_scale_factor=32).preprocess_video(images, height, width).numpy()


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (50, 70), (64, 64)])
def test_bytes_are_resized_and_scaled_as_diffusers_does(size: tuple[int, int]) -> None:
    frames = [PIXELS, PIXELS[::-1]]
    if size == (50, 70):  # no multiple of 32: diffusers would round it; no resizing at all here
        expected = np.stack(frames).astype(np.float32).transpose(3, 0, 1, 2)[None] / np.float32(255) * 2 - 1
    else:
        expected = diffusers_pixels([Image.fromarray(frame) for frame in frames], *size)
    np.testing.assert_array_equal(to_pixels(frames, *size), expected)


def test_floats_are_the_same_image() -> None:
    dim = PIXELS // 4 + 96  # far from black and white, where bytes are cut off between Lanczos' two passes
    bytes_, floats = (to_pixels([load_image(each)], 64, 96) for each in (dim, dim / np.float32(255)))
    assert np.abs(bytes_ - floats).max() <= 4 / 255  # bytes are rounded after each pass: within two levels
    np.testing.assert_array_equal(to_pixels([PIXELS], 50, 70), to_pixels([PIXELS / np.float32(255)], 50, 70))


def test_floats_stay_in_range() -> None:
    assert np.abs(to_pixels([PIXELS / np.float32(255)], 64, 96)).max() == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_any_mode_of_8_bits_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode == "LA" else "RGB").convert(mode)
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))


def test_a_file_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), np.rot90(PIXELS, -1))


def test_videos_are_arrays_lists_and_files(tmp_path: Path) -> None:
    from telecine.video import save_video

    frames = np.stack([PIXELS, PIXELS[::-1]])
    listed: list[Any] = [Image.fromarray(PIXELS), PIXELS[::-1]]
    for video in (frames, listed):
        np.testing.assert_array_equal(np.stack(load_video(video)[0]), frames)
    save_video(frames, tmp_path / "clip.mp4", frame_rate=8)
    read, rate = load_video(tmp_path / "clip.mp4")
    assert (np.stack(read).shape, rate) == (frames.shape, 8)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PIXELS[:, :, 0], r"shape \(50, 70\)"),
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 50, 70\)"),
        (PIXELS.astype(np.float32), "float32 from 0.0 to 255.0; expected uint8 .*, or floats"),
        (PIXELS / np.float32(127.5) - 1, "float32 from -1.0"),
        (np.full((4, 4, 3), np.nan), "from nan"),
        (PIXELS.astype(np.int64), "an array of int64"),
        (7, "an image is int"),
        (None, "an image is NoneType"),
        ("missing.png", "no file missing.png"),
        (Image.new("I", (4, 4)), "mode 'I'"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_image(image)


def test_a_broken_file(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(RequestError, match=f"{name} cannot be read as an image"):
            load_image(tmp_path / name)


@pytest.mark.parametrize(
    ("video", "words"),
    [(PIXELS, r"shape \(50, 70, 3\)"), ([], "no frames"), (7, "a video is int"), ([7], "image is int")],
)
def test_what_is_no_video_is_refused(video: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_video(video)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.testing.assert_array_equal(load_image(PIXELS), PIXELS)  # arrays need none, whatever their size
    assert to_pixels([PIXELS], 64, 96).shape == (1, 3, 1, 64, 96)
    with pytest.raises(BackendError, match=r"telecine\[video\]"):
        load_image("a.png")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither an image nor a video"),
        ({"image": PIXELS, "video": [PIXELS]}, "an image and a video"),
        ({"image": PIXELS, "frame_index": -1}, "frame_index is -1"),
        ({"image": PIXELS, "frame_index": 8.0}, "frame_index is 8.0"),
        ({"image": PIXELS, "strength": 1.1}, "strength is 1.1"),
        ({"image": PIXELS, "strength": float("nan")}, "strength is nan"),
        ({"image": PIXELS, "strength": "1"}, "strength is '1'"),
        ({"image": PIXELS, "index": 1.0}, "index is 1.0"),
        ({"image": PIXELS, "index": 1, "frame_index": 1}, "index=1 and frame_index=1"),
        ({"image": PIXELS, "crf": True}, "crf is True"),
        ({"image": PIXELS, "crf": 52}, "crf is 52"),
    ],
)
def test_conditions_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Condition(**fields)
