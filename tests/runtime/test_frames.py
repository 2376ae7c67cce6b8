"""Videos as people pass them: files, arrays, lists of images; and what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from telecine.errors import RequestError
from telecine.frames import load_frames
from telecine.video import save_video

BYTES = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)


def test_a_file_has_a_frame_rate(tmp_path: Path) -> None:
    save_video(BYTES, tmp_path / "clip.gif", frame_rate=10)
    frames, rate = load_frames(str(tmp_path / "clip.gif"))
    assert (frames.shape, frames.dtype, rate) == (BYTES.shape, np.uint8, 10.0)


@pytest.mark.parametrize(
    "video", [BYTES, list(BYTES), tuple(BYTES), [Image.fromarray(frame) for frame in BYTES]], ids=str
)
def test_bytes_stay_as_they_are(video: Any) -> None:
    frames, rate = load_frames(video)
    np.testing.assert_array_equal(frames, BYTES)
    assert rate is None


def test_floats_become_float32_and_images_rgb() -> None:
    frames, _ = load_frames(BYTES / 255.0)
    assert frames.dtype == np.float32
    grey, _ = load_frames([Image.fromarray(BYTES[0]).convert("L")])
    assert grey.shape == (1, 4, 6, 3)
    assert grey.dtype == np.uint8


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (BYTES[0], r"shape \(4, 6, 3\)"),
        (BYTES[:0], r"shape \(0, 4, 6, 3\)"),
        (BYTES[np.newaxis], r"shape \(1, 3, 4, 6, 3\)"),
        (BYTES[..., :1], r"shape \(3, 4, 6, 1\)"),
        ([BYTES[0], BYTES[1][:2]], "no frames"),
        (BYTES.astype(np.float32), "from 0.0 to 255.0"),
        (BYTES / 255.0 * 2 - 1, "from -1.0 to 1.0"),
        (np.full((1, 2, 2, 3), np.nan), "from nan"),
        (BYTES.astype(np.int64), "int64 frames"),
        (None, r"shape \(\)"),
        ("nowhere.mp4", "no file nowhere.mp4"),
    ],
)
def test_what_is_no_video_is_refused(video: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_frames(video)
