"""The loop with a NumPy function for a network: what is called with what, in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from telecine.conditioning import Conditioning
from telecine.denoise import HostSteps, denoise
from telecine.errors import Cancelled, RequestError
from telecine.families.ltx_video.sampler import FlowSampler
from telecine.guidance import Guidance, StepGuidance
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, make_schedule, pipeline_sigmas

PLAIN, STOCHASTIC = FlowMatchEulerConfig(), FlowMatchEulerConfig(stochastic_sampling=True)
SCHEDULE = make_schedule(PLAIN, sigmas=pipeline_sigmas(4))
NOISE = np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32)


def run(
    network: Any, *, config: Any = PLAIN, scale: float = 1.0, draw_noise: Any = None, callback: Any = None
) -> np.ndarray:
    guidance = Guidance((StepGuidance(scale=scale),) * len(SCHEDULE.timesteps))
    sampler = FlowSampler(config=config, schedule=SCHEDULE, conditioning=Conditioning(), draw_noise=draw_noise)
    steps = HostSteps(network, NOISE, sampler=sampler, guidance=guidance)
    return denoise(steps, sampler.sigmas, callback)


def test_a_constant_velocity_is_followed_from_the_first_sigma_to_zero() -> None:
    velocity = np.full_like(NOISE, 0.5)
    np.testing.assert_allclose(run(lambda latents, *_: velocity), NOISE - 0.5, rtol=0, atol=1e-6)


def test_the_true_flow_leads_to_its_end() -> None:
    target = np.random.default_rng(1).standard_normal(NOISE.shape, dtype=np.float32)
    np.testing.assert_allclose(run(lambda latents, *_: NOISE - target), target, rtol=0, atol=1e-5)


def test_the_network_sees_every_timestep_and_the_latest_latents() -> None:
    seen = []

    def network(latents: np.ndarray, timestep: float, _: StepGuidance) -> np.ndarray:
        seen.append((float(timestep), latents.copy()))
        return np.ones_like(latents)

    run(network)
    assert [timestep for timestep, _ in seen] == SCHEDULE.timesteps.tolist()
    moved = SCHEDULE.sigmas[0] - SCHEDULE.sigmas[:-1]
    for (_, latents), distance in zip(seen, moved, strict=True):
        np.testing.assert_allclose(latents, NOISE - distance, rtol=0, atol=1e-6)


def test_guidance_combines_negative_and_positive() -> None:
    def network(latents: np.ndarray, timestep: float, _: StepGuidance) -> np.ndarray:
        return np.concatenate([np.full_like(latents, 1.0), np.full_like(latents, 2.0)])

    np.testing.assert_allclose(run(network, scale=3.0), NOISE - (1 + 3 * (2 - 1)), rtol=0, atol=1e-6)


def test_the_network_may_reuse_its_buffer() -> None:
    buffer = np.empty_like(NOISE)

    def network(latents: np.ndarray, timestep: float, _: StepGuidance) -> np.ndarray:
        np.multiply(latents, 0.5, out=buffer)
        return buffer

    reused = run(network)
    np.testing.assert_array_equal(reused, run(lambda latents, *_: latents * np.float32(0.5)))
    assert not np.shares_memory(reused, buffer)


def test_the_callers_noise_stays_as_it_is() -> None:
    before = NOISE.copy()
    run(lambda latents, *_: latents)
    np.testing.assert_array_equal(NOISE, before)


def test_stochastic_steps_draw_once_each() -> None:
    draws = []

    def draw() -> np.ndarray:
        draws.append(np.full_like(NOISE, len(draws)))
        return draws[-1]

    result = run(lambda latents, *_: latents, config=STOCHASTIC, draw_noise=draw)
    assert len(draws) == 4
    assert np.isfinite(result).all()


def test_plain_steps_draw_nothing_by_themselves() -> None:
    with pytest.raises(RequestError, match="got no noise"):
        run(lambda latents, *_: latents, config=STOCHASTIC)


def test_the_callback_sees_each_steps_result() -> None:
    seen: list[Any] = []
    result = run(lambda latents, *_: latents, callback=lambda *seen_now: seen.append(seen_now))
    assert [(step, steps) for step, steps, _, _ in seen] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [sigma for _, _, sigma, _ in seen] == [float(sigma) for sigma in SCHEDULE.sigmas[:-1]]
    assert all(type(sigma) is float for _, _, sigma, _ in seen)
    np.testing.assert_array_equal(seen[-1][3], result)


@pytest.mark.parametrize("answer", [None, True, np.True_])
def test_the_callback_may_say_go_on(answer: Any) -> None:
    plain = run(lambda latents, *_: latents)
    np.testing.assert_array_equal(run(lambda latents, *_: latents, callback=lambda *_: answer), plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_callback_may_replace_the_latents(dtype: Any) -> None:
    result = run(
        lambda latents, *_: np.zeros_like(latents),
        callback=lambda step, steps, sigma, latents: np.full(latents.shape, 7, dtype) if step == 1 else None,
    )
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.full_like(NOISE, 7))


@pytest.mark.parametrize("no", [False, np.False_])
def test_the_callback_may_stop_the_run(no: Any) -> None:
    calls = []
    with pytest.raises(Cancelled, match="stopped the run after step 2 of 4"):
        run(
            lambda latents, timestep, _: calls.append(timestep) or latents,
            callback=lambda step, *_: no if step == 1 else None,
        )
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (np.zeros((2, 3, 5), np.float32), r"float32 \(2, 3, 5\)"),
        (np.zeros((1, 3, 4), np.float32), r"float32 \(1, 3, 4\)"),
        (np.zeros((2, 12), np.float32), r"float32 \(2, 12\)"),
        (np.zeros((2, 3, 4), np.int64), r"int64 \(2, 3, 4\)"),
        (np.zeros((2, 3, 4), np.complex64), r"complex64"),
        (np.float32(3), "float32"),
        ([1.0], "list"),
        ("stop", "str"),
        (0, "int"),
    ],
)
def test_the_callback_may_not_return_anything_else(answer: Any, got: str) -> None:
    expected = rf"the callback returned {got}.*; expected None, False, or a NumPy array of floats of shape \(2, 3, 4\)"
    with pytest.raises(RequestError, match=expected):
        run(lambda latents, *_: latents, callback=lambda *_: answer)
