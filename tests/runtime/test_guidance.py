"""Oracle: torch running the lines of diffusers' LTXPipeline."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

from telecine.guidance import classifier_free, rescale

SHAPES = [(1, 2), (1, 24, 8), (3, 35, 16), (2, 4, 3, 5, 7), (1, 6144, 32)]


def draw(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) + np.float32(mean)


@pytest.mark.parametrize("scale", [1.0, 3, 3.05, 7.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_classifier_free_matches_torch_bit_for_bit(shape: tuple[int, ...], scale: float) -> None:
    uncond, cond = draw(shape, 0), draw(shape, 1)
    kept = uncond.copy(), cond.copy()
    u, c = torch.from_numpy(uncond), torch.from_numpy(cond)
    guided = classifier_free(uncond, cond, scale)
    assert guided.dtype == np.float32
    np.testing.assert_array_equal(guided, (u + scale * (c - u)).numpy())
    np.testing.assert_array_equal(uncond, kept[0])
    np.testing.assert_array_equal(cond, kept[1])


def test_predictions_of_different_shapes_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        classifier_free(draw((1, 4, 2), 0), draw((2, 4, 2), 1), 3.0)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_rescale_matches_diffusers(shape: tuple[int, ...], mean: float, phi: float) -> None:
    cond = draw(shape, 1, mean)
    # each video of the batch has a spread of its own
    guided = draw(shape, 0, mean) * np.arange(2, 2 + shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    kept = guided.copy(), cond.copy()
    result = rescale(guided, cond, phi)
    assert result.dtype == np.float32
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(cond), guidance_rescale=phi)
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6, atol=1e-6)
    exact = rescale_noise_cfg(torch.from_numpy(guided).double(), torch.from_numpy(cond).double(), guidance_rescale=phi)
    np.testing.assert_allclose(result, exact.numpy(), rtol=1.5e-7, atol=0)
    np.testing.assert_array_equal(guided, kept[0])
    np.testing.assert_array_equal(cond, kept[1])


def test_full_rescale_restores_the_spread() -> None:
    guided, cond = draw((2, 64, 8), 0) * np.float32(5), draw((2, 64, 8), 1)
    spread = rescale(guided, cond, 1.0).astype(np.float64).std(axis=(1, 2))
    np.testing.assert_allclose(spread, cond.astype(np.float64).std(axis=(1, 2)), rtol=1e-6)
