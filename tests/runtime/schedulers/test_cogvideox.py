"""The CogVideoX schedulers against diffusers' own: levels, timesteps for every number of steps, and steps of both."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from telecine.errors import BundleError, RequestError
from telecine.schedulers import cogvideox_ddim, cogvideox_dpm
from telecine.schedulers.cogvideox import (
    CogVideoXSchedulerConfig,
    add_noise,
    make_schedule,
    noise_levels,
    predict_original,
)

# As the published models have them.
PUBLISHED: dict[str, Any] = {
    "snr_shift_scale": 1.0,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    PUBLISHED,
    PUBLISHED | {"snr_shift_scale": 3.0},
    PUBLISHED | {"timestep_spacing": "leading", "steps_offset": 1},
    PUBLISHED | {"timestep_spacing": "linspace", "set_alpha_to_one": False},
    {"prediction_type": "sample", "beta_start": 0.001, "beta_end": 0.02},
    {"num_train_timesteps": 200, "timestep_spacing": "trailing"},
)
# Of a coefficient: the last bit of its float32, where NumPy's and torch's logarithms differ in their last bit.
ONE_ULP = 2.0**-23
SHAPE = (2, 3, 4, 5, 6)


def schedule(steps: int, **config: Any) -> Any:
    return make_schedule(CogVideoXSchedulerConfig(**config), steps)


def reference(kind: Any, steps: int, **config: Any) -> Any:
    scheduler = kind(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def arrays(seed: int, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(SHAPE, dtype=np.float32) for _ in range(count)]


@pytest.mark.parametrize("config", CONFIGS)
def test_levels_are_diffusers(config: dict[str, Any]) -> None:
    expected = CogVideoXDDIMScheduler(**config).alphas_cumprod.numpy()
    np.testing.assert_allclose(noise_levels(CogVideoXSchedulerConfig(**config)), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_diffusers_for_every_number_of_steps(spacing: str) -> None:
    refused = []
    scheduler = CogVideoXDDIMScheduler(timestep_spacing=spacing)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.numpy()
        try:
            got = schedule(steps, timestep_spacing=spacing)
        except RequestError:
            refused.append(steps)
            assert expected.min() < 0
            assert len(expected) == steps + 1
            continue
        assert len(expected) == steps
        np.testing.assert_array_equal(got.timesteps, expected)
    assert refused[:4] == ([61, 103, 121, 122] if spacing == "trailing" else [])
    assert len(refused) == (62 if spacing == "trailing" else 0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_schedule_are_refused(steps: int) -> None:
    with pytest.raises(RequestError, match=f"num_inference_steps is {steps}; expected 1 to 1000"):
        schedule(steps)


def test_an_offset_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(RequestError, match="a step outside the schedule"):
        schedule(1000, timestep_spacing="leading", steps_offset=1)


def test_a_step_below_zero_is_refused_with_its_neighbours() -> None:
    with pytest.raises(RequestError, match="from 999 to -1.*Use 60 or 62"):
        schedule(61, **PUBLISHED)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_ddim_steps_are_diffusers(config: dict[str, Any], steps: int) -> None:
    ours = schedule(steps, **config)
    theirs = reference(CogVideoXDDIMScheduler, steps, **config)
    sample, prediction = arrays(steps, 2)
    for index, timestep in enumerate(theirs.timesteps):
        got = cogvideox_ddim.step(ours, index, prediction, sample)
        expected = theirs.step(torch.from_numpy(prediction), timestep, torch.from_numpy(sample), return_dict=False)[0]
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6, atol=1e-6 * np.abs(got).max())
        sample = expected.numpy() / max(1.0, float(expected.std()))  # epsilon of a random network grows


@pytest.mark.parametrize("config", CONFIGS[1:3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_dpm_steps_and_draws_are_diffusers(config: dict[str, Any], steps: int) -> None:
    ours = schedule(steps, **config)
    theirs = reference(CogVideoXDPMScheduler, steps, **config)
    sample, prediction = arrays(steps, 2)
    generator = torch.Generator().manual_seed(3)
    same = torch.Generator().manual_seed(3)
    before, old = None, None
    for index, timestep in enumerate(theirs.timesteps):
        got, before = cogvideox_dpm.step(
            ours, index, prediction, sample, before=before,
            draw_noise=lambda: torch.randn(SHAPE, generator=same).numpy(),
        )  # fmt: skip
        expected, old = theirs.step(
            torch.from_numpy(prediction), old, timestep, theirs.timesteps[index - 1] if index else None,
            torch.from_numpy(sample), generator=generator,
        )  # fmt: skip
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(before, old.numpy(), rtol=0, atol=2e-6)
        assert torch.equal(generator.get_state(), same.get_state())  # as many draws
        sample = expected.numpy()


@pytest.mark.parametrize("steps", [2, 6, 13, 50, 60])
def test_dpm_coefficients_are_diffusers(steps: int) -> None:
    ours, theirs = schedule(steps, **PUBLISHED), reference(CogVideoXDPMScheduler, steps, **PUBLISHED)
    for index, timestep in enumerate(theirs.timesteps.tolist()):
        previous = timestep - 1000 // steps
        levels = [
            theirs.alphas_cumprod[timestep],
            theirs.alphas_cumprod[previous] if previous >= 0 else theirs.final_alpha_cumprod,
            theirs.alphas_cumprod[theirs.timesteps[index - 1]] if index else None,
        ]
        h, r, *_ = theirs.get_variables(*levels)
        expected = [float(each) for each in theirs.get_mult(h, r, *levels)]
        got = cogvideox_dpm.coefficients(ours, index)
        np.testing.assert_allclose([got.sample, got.original], expected[:2], rtol=2 * ONE_ULP, atol=1e-12)
        if index and previous >= 0:
            np.testing.assert_allclose([got.now, got.before], expected[2:], rtol=2 * ONE_ULP, atol=1e-12)


def test_infinite_logarithms_warn_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(2):
            assert np.isfinite(cogvideox_dpm.coefficients(schedule(2, **PUBLISHED), index)).all()


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_a_given_video_gets_diffusers_noise(strength: float) -> None:
    whole = schedule(10, **PUBLISHED)
    ours = whole.last_steps(strength)
    theirs = reference(CogVideoXDDIMScheduler, 10, **PUBLISHED)
    np.testing.assert_array_equal(ours.timesteps, whole.timesteps[10 - int(10 * strength) :])
    original, noise = arrays(0, 2)
    start = torch.tensor([int(ours.timesteps[0])] * 2)
    expected = theirs.add_noise(torch.from_numpy(original), torch.from_numpy(noise), start)
    np.testing.assert_allclose(add_noise(ours, original, noise), expected.numpy(), rtol=0, atol=5e-7)


def test_a_strength_without_a_step_is_refused() -> None:
    with pytest.raises(RequestError, match="a strength of 0.05 of 10 steps; expected at least one"):
        schedule(10).last_steps(0.05)


def test_sigmas_begin_at_noise_alone() -> None:
    sigmas = schedule(5, **PUBLISHED).sigmas
    assert sigmas[0] == 1
    assert (np.diff(sigmas) < 0).all()


def test_inputs_are_left_as_they_are() -> None:
    sample, prediction, noise = arrays(1, 3)
    kept = [each.copy() for each in (sample, prediction, noise)]
    for kind in ("epsilon", "sample", "v_prediction"):
        ours = schedule(4, prediction_type=kind)
        cogvideox_ddim.step(ours, 1, prediction, sample)
        cogvideox_dpm.step(ours, 1, prediction, sample, before=noise, draw_noise=lambda: noise)
        add_noise(ours, sample, noise)
        predict_original(ours, 1, prediction, sample)
    for now, then in zip((sample, prediction, noise), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_both_classes_are_read_with_diffusers_notes() -> None:
    for kind in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler):
        config = dict(kind(**PUBLISHED).config) | {"_class_name": kind.__name__, "_diffusers_version": "0.42.1"}
        parsed = CogVideoXSchedulerConfig.from_dict(config)
        assert parsed.class_name == kind.__name__
        assert parsed.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "class_name is 'DDIMScheduler'"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"steps_offset": -1}, "steps_offset is -1"),
        ({"beta_end": "0.1"}, "beta_end is '0.1'"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one is 1"),
        ({"dynamic": True}, "has dynamic"),
    ],
)
def test_other_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        CogVideoXSchedulerConfig.from_dict(config)
