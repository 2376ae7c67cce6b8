"""Spectra as pictures: levels in decibels, phases left out, and what is broken shows."""

from __future__ import annotations

import numpy as np
import pytest

from telecine.picture_quality import compare_clips
from telecine_export.precision.sound_picture import HOP, RANGE, WINDOW, sound_picture

TIMES = np.arange(40 * HOP) / WINDOW
BIN = 32  # a frequency of the spectrum: its tone is in no other but the neighbours


def tone(decibels: float = 0.0, phase: float = 0.0) -> np.ndarray:
    return 10 ** (decibels / 20) * np.sin(2 * np.pi * BIN * TIMES + phase)[np.newaxis]


@pytest.mark.parametrize("decibels", [0.0, -20.0, -60.0])
def test_a_tone_is_as_bright_as_it_is_loud(decibels: float) -> None:
    """To a twentieth of a decibel: NumPy's windows are symmetric, so that a tone is not in a bin alone."""
    picture = sound_picture(np.concatenate([tone(decibels), np.zeros_like(tone())]))
    assert picture.shape == (1, 1 + (TIMES.size - WINDOW) // HOP, WINDOW // 2 + 1, 2)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[0, :, BIN, 0], 1 + decibels / RANGE, rtol=0, atol=0.05 / RANGE)
    assert picture[0, :, 3 * BIN :, 0].max() < 0.05
    assert picture[..., 1].max() == 0


def test_phases_are_not_compared_and_levels_are() -> None:
    reference = sound_picture(tone())
    moved, quieter = (sound_picture(each) for each in (tone(phase=1.0), tone(-6.0)))
    near = slice(BIN - 1, BIN + 2)
    np.testing.assert_allclose(moved[:, :, near], reference[:, :, near], rtol=0, atol=1e-3)
    np.testing.assert_allclose(reference[0, :, BIN] - quieter[0, :, BIN], 6 / RANGE, rtol=0, atol=1e-5)


def test_what_is_gone_or_broken_is_told() -> None:
    reference = sound_picture(tone())
    gone = compare_clips(sound_picture(0 * tone()), reference)
    assert (gone.black_frames, gone.broken) == (1, True)
    broken = tone()
    broken[0, 1000] = np.nan
    assert compare_clips(sound_picture(broken), reference).finite is False
    same = compare_clips(reference, reference)
    assert (same.psnr, same.broken) == (float("inf"), False)


@pytest.mark.parametrize("samples", [1, WINDOW, WINDOW + 6 * HOP])
def test_short_sounds_have_a_picture_that_is_compared(samples: int) -> None:
    picture = sound_picture(tone()[:, :samples])
    assert picture.shape[1] == 7
    assert compare_clips(picture, picture).ssim == pytest.approx(1)
