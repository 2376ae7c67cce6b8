"""Oracle: Pillow itself, which telecine does without."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
from PIL import Image

from telecine.resample import BICUBIC, BILINEAR, LANCZOS, Kernel, resize

KERNELS = [
    (BILINEAR, Image.Resampling.BILINEAR),
    (BICUBIC, Image.Resampling.BICUBIC),
    (LANCZOS, Image.Resampling.LANCZOS),
]
# (height, width) before and after: larger, smaller, one of each either way round, one side only, a single row.
SIZES = [
    ((37, 53), (64, 96)),
    ((64, 96), (37, 53)),
    ((79, 100), (27, 65)),
    ((100, 80), (33, 120)),
    ((30, 90), (64, 32)),
    ((31, 40), (31, 77)),
    ((40, 31), (13, 31)),
    ((1, 90), (7, 45)),
    ((20, 24), (20, 24)),
]


@pytest.mark.parametrize(("kernel", "theirs"), KERNELS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bytes_match_pillow_bit_for_bit(
    before: tuple[int, int], after: tuple[int, int], kernel: Kernel, theirs: Image.Resampling
) -> None:
    if before[0] - after[0] > max(2 * (before[1] - after[1]), 0) and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("older releases take the columns first even here")
    frames = np.random.default_rng(0).integers(0, 256, (2, *before, 3), dtype=np.uint8)  # noise: the filters overshoot
    expected = [np.asarray(Image.fromarray(frame).resize(after[::-1], theirs)) for frame in frames]
    np.testing.assert_array_equal(resize(frames, *after, kernel), np.stack(expected))


@pytest.mark.parametrize(("kernel", "theirs"), KERNELS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_floats_match_pillows_mode_f(
    before: tuple[int, int], after: tuple[int, int], kernel: Kernel, theirs: Image.Resampling
) -> None:
    frames = np.random.default_rng(1).random((2, *before, 3), dtype=np.float32)
    planes = [[Image.fromarray(frame[..., c]).resize(after[::-1], theirs) for c in range(3)] for frame in frames]
    expected = np.stack([np.stack([np.asarray(plane) for plane in planes], axis=-1) for planes in planes])
    resized = resize(frames, *after, kernel)
    assert resized.dtype == np.float32
    # Pillow sums in float64, telecine in float32: a dozen values of about 1.
    np.testing.assert_allclose(resized, expected, atol=1e-6, rtol=0)


def test_a_flat_frame_stays_flat() -> None:
    frames = np.full((1, 19, 23, 3), 77, np.uint8)
    assert (resize(frames, 40, 11, LANCZOS) == 77).all()
