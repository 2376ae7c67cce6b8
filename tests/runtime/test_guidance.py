"""Oracles: torch running the lines of diffusers' LTXPipeline, and the papers' formulas in torch at float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st

from telecine.guidance import (
    PASSES,
    STG_MODES,
    Guidance,
    StepGuidance,
    classifier_free,
    project,
    rescale,
    spatio_temporal,
)

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


@pytest.mark.parametrize("shape", SHAPES)
def test_projection_matches_diffusers(shape: tuple[int, ...]) -> None:
    uncond, cond = draw(shape, 0, 0.5), draw(shape, 1, 0.5)
    kept = uncond.copy(), cond.copy()
    u, c = torch.from_numpy(uncond), torch.from_numpy(cond)
    result = project(uncond, cond)
    assert result.dtype == np.float32
    scale = cfg_zero_star_scale(c.flatten(1), u.flatten(1)).reshape(-1, *[1] * (len(shape) - 1))
    # Sums of up to 2e5 products, which torch rounds to float32 on the way.
    np.testing.assert_allclose(result, (u * scale).numpy(), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(uncond, kept[0])
    np.testing.assert_array_equal(cond, kept[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_what_projection_leaves_is_orthogonal_for_each_video(shape: tuple[int, ...]) -> None:
    # each video has a scale of its own
    uncond = draw(shape, 0) * np.arange(1, 1 + shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    cond = draw(shape, 1)
    rest = (cond.astype(np.float64) - project(uncond, cond)).reshape(shape[0], -1)
    flat = uncond.astype(np.float64).reshape(shape[0], -1)
    cosine = (rest * flat).sum(axis=1) / np.linalg.norm(rest, axis=1) / np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(cosine, 0, atol=1e-6)


def test_a_zero_prediction_projects_to_zero() -> None:
    assert not project(np.zeros((2, 4, 3), np.float32), draw((2, 4, 3), 0)).any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_perturbed_term_matches_torch_bit_for_bit(shape: tuple[int, ...], scale: float) -> None:
    arrays = [draw(shape, seed) for seed in range(3)]
    kept = [array.copy() for array in arrays]
    g, c, p = map(torch.from_numpy, arrays)
    result = spatio_temporal(*arrays, scale)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, (g + scale * (c - p)).numpy())
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)


def torch_combined(step: StepGuidance, u: np.ndarray, c_: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The papers' formulas in Lightricks' order, one video at a time, at float64."""
    videos = []
    for negative, c, perturbed in zip(*(torch.from_numpy(each).double() for each in (u, c_, p)), strict=True):
        guided = c
        if step.scale > 1:
            factor = (c * negative).sum() / negative.square().sum() if step.cfg_star else 1
            guided = factor * negative + step.scale * (c - factor * negative)
        if step.stg_scale > 0:
            guided = guided + step.stg_scale * (c - perturbed)
        if step.scale > 1 or step.stg_scale > 0:
            guided = step.rescale * guided * c.std() / guided.std() + (1 - step.rescale) * guided
        videos.append(guided)
    return torch.stack(videos).numpy()


@pytest.mark.parametrize("cfg_star", [False, True], ids=["", "star"])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("stg_scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_combination_matches_torch(
    batch: int, scale: float, stg_scale: float, phi: float, cfg_star: bool
) -> None:
    step = StepGuidance(scale=scale, stg_scale=stg_scale, rescale=phi, cfg_star=cfg_star, stg_blocks=(0,))
    spread = np.arange(1, 1 + batch, dtype=np.float32).reshape(-1, 1, 1)
    predictions = {name: draw((batch, 35, 16), seed) * spread for seed, name in enumerate(PASSES[:3])}
    velocities = np.concatenate([predictions[each] for each in step.passes])
    result = step.combine(velocities)
    assert result.dtype == np.float32
    # Values reach 100 (three predictions at the scale of 8): some roundings of 4e-6 each.
    np.testing.assert_allclose(result, torch_combined(step, *predictions.values()), rtol=1e-6, atol=1e-5)
    assert np.shares_memory(result, velocities)  # no new pages in every step


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_without_the_new_guidance_the_bits_are_those_of_before(phi: float) -> None:
    uncond, cond = draw((2, 35, 16), 0), draw((2, 35, 16), 1)
    step = StepGuidance(scale=3.0, rescale=phi, stg_blocks=(1, 2), stg_mode="transformer_block")
    guided = classifier_free(uncond, cond, 3.0)
    expected = rescale(guided, cond, phi) if phi else guided
    np.testing.assert_array_equal(step.combine(np.concatenate([uncond, cond])), expected)
    alone = StepGuidance(scale=1.0, rescale=phi, cfg_star=True)
    np.testing.assert_array_equal(alone.combine(cond), cond)


@pytest.mark.parametrize(
    ("scale", "stg_scale", "passes"),
    [
        (1.0, 0.0, ("positive",)),
        (0.5, 0.0, ("positive",)),
        (1.01, 0.0, ("negative", "positive")),
        (1.0, 0.5, ("positive", "perturbed")),
        (3.0, 1.0, ("negative", "positive", "perturbed")),
    ],
)
def test_a_step_needs_only_the_passes_that_count(scale: float, stg_scale: float, passes: tuple[str, ...]) -> None:
    assert StepGuidance(scale=scale, stg_scale=stg_scale).passes == passes


@given(st.lists(st.tuples(st.sampled_from([1.0, 3.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=5))
def test_each_steps_passes_are_neighbours_in_the_runs(scales: list[tuple[float, float]]) -> None:
    guidance = Guidance(tuple(StepGuidance(scale=scale, stg_scale=stg) for scale, stg in scales))
    assert set(guidance.passes) == {each for step in guidance.steps for each in step.passes}
    assert guidance.passes == tuple(each for each in PASSES if each in guidance.passes)
    for index, step in enumerate(guidance.steps):
        assert guidance.at(index) is step
        first = guidance.passes.index(step.passes[0])
        assert guidance.passes[first : first + len(step.passes)] == step.passes


@pytest.mark.parametrize("mode", STG_MODES)
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_modes_stand_in_the_perturbed_rows_alone(scale: float, batch: int, mode: str) -> None:
    step = StepGuidance(scale=scale, stg_scale=1.0, stg_blocks=(3, 1), stg_mode=mode)
    modes = step.stg_modes(5, batch)
    assert (modes.dtype, modes.shape) == (np.int32, (5, len(step.passes) * batch))
    for block, row in itertools.product(range(5), range(modes.shape[1])):
        perturbed = block in (1, 3) and row >= modes.shape[1] - batch
        assert modes[block, row] == (STG_MODES[mode] if perturbed else 0)


def test_a_step_without_perturbation_has_no_modes() -> None:
    assert not StepGuidance(scale=3.0, stg_blocks=(0, 1)).stg_modes(4, 2).any()
