"""Picture measures against naive loops, and the faults that no measure averages away."""

from __future__ import annotations

import math

import numpy as np
import pytest

from telecine.picture_quality import compare_clips, psnr, ssim

RANDOM = np.random.default_rng(0)


def clip(frames: int = 3) -> np.ndarray:
    return RANDOM.uniform(0.2, 0.8, (frames, 12, 10, 3)).astype(np.float32)


def naive_ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """The paper's formula, a window at a time."""
    found = []
    for channel in range(image.shape[2]):
        for top in range(image.shape[0] - 6):
            for left in range(image.shape[1] - 6):
                x, y = (each[top : top + 7, left : left + 7, channel].ravel() for each in (image, reference))
                covariance = np.cov(x, y)
                luminance = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
                structure = (2 * covariance[0, 1] + 9e-4) / (covariance[0, 0] + covariance[1, 1] + 9e-4)
                found.append(luminance * structure)
    return float(np.mean(found))


def test_ssim_is_the_formula() -> None:
    image = RANDOM.uniform(0, 1, (11, 9, 2))
    noisy = image + RANDOM.normal(0, 0.1, image.shape)
    assert ssim(noisy, image) == pytest.approx(naive_ssim(noisy, image), abs=1e-12)
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(1 - image, image) < 0


def test_psnr_is_the_formula() -> None:
    reference = clip()
    noisy = reference + 0.01
    assert psnr(noisy, reference) == pytest.approx(40, abs=1e-3)
    assert psnr(255 * noisy, 255 * reference, peak=255) == pytest.approx(40, abs=1e-3)
    assert psnr(reference, reference) == math.inf
    assert math.isnan(psnr(np.array([np.nan, 0.0]), np.zeros(2)))


def test_flicker_lowers_the_temporal_measure_and_a_shift_of_brightness_does_not() -> None:
    reference = clip(4)
    brighter = compare_clips(reference + np.float32(0.05), reference)
    flicker = reference + np.array([0.05, -0.05, 0.05, -0.05], np.float32)[:, None, None, None]
    flickering = compare_clips(flicker, reference)
    assert brighter.psnr == pytest.approx(flickering.psnr, abs=1e-3)
    assert brighter.temporal_psnr > 100
    assert flickering.temporal_psnr == pytest.approx(20, abs=1e-3)


def test_one_frame_has_no_motion() -> None:
    assert compare_clips(clip(1), clip(1)).temporal_psnr == math.inf


def test_nan_and_black_frames_are_told() -> None:
    reference = clip()
    broken = reference.copy()
    broken[1, 0, 0, 0] = np.nan
    assert not compare_clips(broken, reference).finite
    assert compare_clips(broken, reference).broken
    black = reference.copy()
    black[2] = 0
    found = compare_clips(black, reference)
    assert (found.finite, found.black_frames, found.broken) == (True, 1, True)
    assert not compare_clips(black, black).broken  # a fade to black is no fault
    assert not compare_clips(reference, reference).broken
