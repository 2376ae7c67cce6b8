"""Conditioning's math against torch, diffusers' own functions and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from telecine.conditioning import (
    Canvas,
    Conditioning,
    FirstFrame,
    TokenStrengths,
    first_frames,
    last_steps,
    lerp,
    mix_noise,
    sample_posterior,
    usable_frames,
)
from telecine.errors import RequestError
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, make_schedule, step
from telecine.schedulers.linear_quadratic import linear_quadratic_sigmas
from telecine.schedulers.token_step import step_tokens

RANDOM = np.random.default_rng(0)
CONFIG = FlowMatchEulerConfig()
SCHEDULE = make_schedule(CONFIG, timesteps=linear_quadratic_sigmas(8) * np.float32(1000))


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.4999, 0.5, 0.6, 0.999, 1.0])
def test_lerp_is_torchs_to_the_last_bit(weight: float) -> None:
    start, end = normal(2, 16, 3, 5, 7), normal(2, 16, 3, 5, 7) * np.float32(100)
    expected = torch.lerp(torch.from_numpy(start), torch.from_numpy(end), weight).numpy()
    np.testing.assert_array_equal(lerp(start, end, weight), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 30, 50, 1000])
def test_linear_quadratic_sigmas_are_diffusers(steps: int) -> None:
    np.testing.assert_array_equal(linear_quadratic_sigmas(steps), linear_quadratic_schedule(steps).numpy())


def test_a_posterior_is_sampled_as_diffusers_does() -> None:
    moments, noise = normal(2, 17, 3, 2, 3), normal(2, 16, 3, 2, 3)
    moments[0, -1, 0], moments[1, -1, 1] = 100, -100  # clipped
    whole = np.concatenate([moments, np.repeat(moments[:, -1:], 15, axis=1)], axis=1)
    posterior = DiagonalGaussianDistribution(torch.from_numpy(whole))
    expected = (posterior.mean + posterior.std * torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(sample_posterior(moments, noise), expected, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize(("frames", "ratio"), [(1, 8), (2, 8), (5, 8), (3, 4)])
def test_first_frames_are_diffusers_coordinates(frames: int, ratio: int) -> None:
    ids = LTXConditionPipeline._prepare_video_ids(1, frames, 2, 3)
    coordinates = LTXConditionPipeline._scale_video_ids(ids, 32, ratio, 24)[0, 0].reshape(frames, 6)[:, 0]
    np.testing.assert_array_equal(first_frames(frames, ratio) + 24, coordinates.numpy())


@pytest.mark.parametrize("given", [1, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("index", [0, 3, 8, 24])
def test_usable_frames_are_diffusers(given: int, index: int) -> None:
    pipeline = type("Ratio", (), {"vae_temporal_compression_ratio": 8})()
    expected = LTXConditionPipeline.trim_conditioning_sequence(pipeline, index, given, 25)
    assert usable_frames(given, frame_index=index, num_frames=25, temporal_ratio=8) == expected


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.4, 0.5, 0.999])
def test_last_steps_are_diffusers(strength: float) -> None:
    sigmas, timesteps, _ = LTXConditionPipeline.get_timesteps(None, SCHEDULE.sigmas, SCHEDULE.timesteps, 8, strength)
    cut = last_steps(SCHEDULE, strength)
    np.testing.assert_array_equal(cut.sigmas, sigmas)
    np.testing.assert_array_equal(cut.timesteps, timesteps)


def test_noise_of_a_sigma() -> None:
    latents, noise = normal(2, 3, 4), normal(2, 3, 4)
    np.testing.assert_array_equal(mix_noise(latents, noise, np.float32(0)), latents)
    np.testing.assert_array_equal(mix_noise(latents, noise, np.float32(1)), noise)
    sigma = torch.tensor(0.725)
    expected = sigma * torch.from_numpy(noise) + (1 - sigma) * torch.from_numpy(latents)
    np.testing.assert_array_equal(mix_noise(latents, noise, np.float32(0.725)), expected.numpy())


class TestTokenStep:
    @pytest.mark.parametrize("index", [0, 3, 7])
    def test_tokens_of_different_timesteps_are_diffusers(self, index: int) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(timesteps=SCHEDULE.timesteps.tolist())
        strengths = np.array([0, 0.3, 0.6, 1], np.float32)
        timesteps = np.minimum(SCHEDULE.timesteps[index], (1 - strengths) * np.float32(1000))
        velocity, sample = normal(2, 4, 5), normal(2, 4, 5)
        (expected,) = scheduler.step(
            -torch.from_numpy(velocity),
            scheduler.timesteps[index],
            torch.from_numpy(sample),
            per_token_timesteps=torch.from_numpy(timesteps).expand(2, -1),
            return_dict=False,
        )
        np.testing.assert_array_equal(step_tokens(CONFIG, SCHEDULE, timesteps, velocity, sample), expected.numpy())

    @pytest.mark.parametrize("stochastic", [False, True])
    def test_equal_tokens_step_as_one(self, stochastic: bool) -> None:
        config = FlowMatchEulerConfig(stochastic_sampling=stochastic)
        velocity, sample, noise = normal(2, 4, 5), normal(2, 4, 5), normal(2, 4, 5)
        for index, timestep in enumerate(SCHEDULE.timesteps):
            apart = step_tokens(config, SCHEDULE, np.full(4, timestep), velocity, sample, noise=noise)
            together = step(config, SCHEDULE, index, velocity, sample, noise=noise)
            np.testing.assert_allclose(apart, together, rtol=0, atol=1e-6)

    def test_stochastic_steps_need_noise(self) -> None:
        config = FlowMatchEulerConfig(stochastic_sampling=True)
        with pytest.raises(RequestError, match="got no noise"):
            step_tokens(config, SCHEDULE, np.ones(1, np.float32), normal(1, 2, 3), normal(1, 2, 3))


class TestKept:
    def test_nothing_is_kept_by_default(self) -> None:
        velocity, sample = normal(2, 6, 5), normal(2, 6, 5)
        plain = Conditioning()
        assert plain.prepare(sample, SCHEDULE.timesteps[0]) is sample
        assert plain.token_timesteps(SCHEDULE.timesteps[1]) == SCHEDULE.timesteps[1]
        np.testing.assert_array_equal(
            plain.step(CONFIG, SCHEDULE, 1, velocity, sample, None), step(CONFIG, SCHEDULE, 1, velocity, sample)
        )

    def test_the_first_frame(self) -> None:
        velocity, sample = normal(2, 6, 5), normal(2, 6, 5)
        first = FirstFrame(frame_tokens=2, tokens=6)
        assert first.token_timesteps(np.float32(900)).tolist() == [0, 0, 900, 900, 900, 900]
        moved = first.step(CONFIG, SCHEDULE, 1, velocity, sample, None)
        np.testing.assert_array_equal(moved[:, :2], sample[:, :2])
        np.testing.assert_array_equal(moved[:, 2:], step(CONFIG, SCHEDULE, 1, velocity, sample)[:, 2:])

    def test_a_token_joins_when_the_noise_falls_to_its_own(self) -> None:
        velocity, sample = normal(1, 4, 5), normal(1, 4, 5)
        held = TokenStrengths(np.array([0, 0.05, 0.6, 1], np.float32))
        for index, timestep in enumerate(SCHEDULE.timesteps):
            moved = (held.step(CONFIG, SCHEDULE, index, velocity, sample, None) != sample).any(axis=(0, 2))
            assert moved.tolist() == [True, timestep <= 950, timestep <= 400, False]

    def test_noise_falls_on_what_is_held_by_1(self) -> None:
        initial, latents, noise = normal(2, 3, 5), normal(2, 3, 5), normal(2, 3, 5)
        strengths = np.array([1, 0.9, 0], np.float32)
        held = TokenStrengths(strengths, initial=initial, noise_scale=0.15, draw_noise=noise.copy)
        made = held.prepare(latents, np.float32(725))
        np.testing.assert_array_equal(made[:, 1:], latents[:, 1:])
        np.testing.assert_allclose(made[:, 0], (initial + 0.15 * 0.725**2 * noise)[:, 0], rtol=0, atol=1e-6)


class TestCanvas:
    def test_in_place_and_in_front(self) -> None:
        noise, first, video, extra = (
            normal(2, 4, 5, 2, 3),
            normal(2, 4, 1, 2, 3),
            normal(2, 4, 3, 2, 3),
            normal(2, 4, 2, 2, 3),
        )
        canvas = Canvas(noise, 8)
        canvas.add(first, frame_index=0, strength=1.0, draw_noise=normal)
        canvas.add(video, frame_index=16, strength=0.6, draw_noise=lambda shape: extra)
        assert canvas.extra_frames == 2
        np.testing.assert_allclose(canvas.strengths, [0.6, 0.6, 1, 0, 0, 0, 0.6], rtol=1e-6)
        assert canvas.first_frames.tolist() == [16, 17, 0, 1, 9, 17, 25]
        made = canvas.latents
        np.testing.assert_allclose(made[:, :, :2], lerp(extra, video[:, :, :2], 0.6), atol=1e-6)
        np.testing.assert_array_equal(made[:, :, 2], first[:, :, 0])
        np.testing.assert_array_equal(made[:, :, 3:6], noise[:, :, 1:4])
        np.testing.assert_allclose(made[:, :, 6], lerp(noise[:, :, 4], video[:, :, 2], 0.6), atol=1e-6)

    def test_the_noise_of_the_caller_stays(self) -> None:
        noise = normal(1, 4, 2, 2, 3)
        before = noise.copy()
        Canvas(noise, 8).add(normal(1, 4, 1, 2, 3), frame_index=0, strength=1.0, draw_noise=normal)
        np.testing.assert_array_equal(noise, before)
