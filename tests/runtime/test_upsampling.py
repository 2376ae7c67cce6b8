"""Oracle: the methods of diffusers' LTXLatentUpsamplePipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXLatentUpsamplePipeline

from telecine.upsampling import adain, tone_map

# Both are a few float32 operations on values of about 1; a deviation's last bit, and exp's, may differ from torch's.
TOLERANCE = 1e-6
# Upsampled, and before: another size in space, in time, and the smallest that has a deviation.
SHAPES = [((1, 3, 2, 4, 6), (1, 3, 2, 2, 3)), ((2, 5, 5, 3, 7), (2, 5, 3, 3, 7)), ((3, 1, 1, 2, 4), (3, 1, 1, 1, 2))]
THEIRS: Any = LTXLatentUpsamplePipeline


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normals whose channels have means and deviations of their own."""
    random = np.random.default_rng(seed)
    channels = (*shape[:2], *[1] * (len(shape) - 2))
    values = random.standard_normal(shape) * random.uniform(0.3, 2, channels) + random.normal(size=channels)
    return values.astype(np.float32)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 1, 1.7, 10.0])
@pytest.mark.parametrize(("shape", "before"), SHAPES)
def test_adain_matches_diffusers(shape: tuple[int, ...], before: tuple[int, ...], factor: float) -> None:
    latents, reference = draw(shape, 0), draw(before, 1)
    kept = latents.copy(), reference.copy()
    expected = THEIRS.adain_filter_latent(None, torch.from_numpy(kept[0]), torch.from_numpy(kept[1]), factor).numpy()
    made = adain(latents, reference, factor)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=TOLERANCE * max(1, factor), rtol=TOLERANCE)
    np.testing.assert_array_equal(latents, kept[0])
    np.testing.assert_array_equal(reference, kept[1])


def test_full_adain_has_the_statistics_of_the_reference_channel_by_channel() -> None:
    latents, reference = draw((2, 3, 2, 8, 6), 0), draw((2, 3, 2, 4, 3), 1)
    made = adain(latents, reference, 1.0)
    for video, channel in np.ndindex(2, 3):
        wanted = reference[video, channel].astype(np.float64)
        got = made[video, channel].astype(np.float64)
        assert got.mean() == pytest.approx(wanted.mean(), abs=1e-6)
        assert got.std(ddof=1) == pytest.approx(wanted.std(ddof=1), rel=1e-6)


@pytest.mark.parametrize("compression", [0.1, 0.6, 1.0, 1])
@pytest.mark.parametrize("shape", [(1, 2), (2, 3, 2, 5, 7)])
def test_tone_map_matches_diffusers(shape: tuple[int, ...], compression: float) -> None:
    latents = 5 * draw(shape, 2)
    latents.flat[0] = 1e4  # the sigmoid saturates
    kept = latents.copy()
    expected = THEIRS.tone_map_latents(None, torch.from_numpy(kept), compression).numpy()
    np.testing.assert_allclose(tone_map(latents, compression), expected, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_array_equal(latents, kept)


def test_tone_map_shrinks_extremes_more_and_keeps_signs() -> None:
    latents = np.array([-8, -1, -0.1, 0, 0.1, 1, 8], np.float32)
    mapped = tone_map(latents, 1.0)
    np.testing.assert_array_equal(np.sign(mapped), np.sign(latents))
    shares = mapped[4:] / latents[4:]
    assert shares[0] > shares[1] > shares[2] == pytest.approx(0.4, abs=1e-3)
    np.testing.assert_array_equal(tone_map(latents, 0.0), latents)
