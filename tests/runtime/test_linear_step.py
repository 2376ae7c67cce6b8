"""Every sampler's linear forms against its own steps: the same float32 numbers in another order.

Tolerance 2e-6 of the largest value: predictions that are no network's make latents grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from telecine.conditioning import Conditioning, FirstFrame, TokenStrengths
from telecine.denoise import Sampler
from telecine.families.cogvideox.sampler import CogVideoXSampler
from telecine.families.ltx_video.sampler import FlowSampler
from telecine.guidance import StepGuidance
from telecine.linear_step import LinearStep
from telecine.schedulers.cogvideox import DDIM, DPM, CogVideoXSchedulerConfig
from telecine.schedulers.cogvideox import make_schedule as make_cogvideox_schedule
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig, make_schedule, pipeline_sigmas

SHAPE = (2, 12, 5)
STRENGTHS = np.repeat(np.array([1, 0.6, 0, 1, 0.2, 0], np.float32), 2)


def draws(seed: int, shape: tuple[int, ...] = SHAPE) -> Callable[[], np.ndarray]:
    random = np.random.default_rng(seed)
    return lambda: random.standard_normal(shape, dtype=np.float32)


def flow(conditioning: Callable[[], Conditioning], *, stochastic: bool) -> Callable[[], Sampler]:
    config = FlowMatchEulerConfig(stochastic_sampling=stochastic)
    schedule = make_schedule(config, sigmas=pipeline_sigmas(5))

    def make() -> Sampler:
        kept = conditioning()
        moved = (2, 8, 5) if isinstance(kept, FirstFrame) else SHAPE
        noise = draws(1, moved) if stochastic else None
        return FlowSampler(config=config, schedule=schedule, conditioning=kept, draw_noise=noise)

    return make


def cogvideox(class_name: str, **options: Any) -> Callable[[], Sampler]:
    schedule = make_cogvideox_schedule(CogVideoXSchedulerConfig(class_name=class_name, **options), 5)
    return lambda: CogVideoXSampler(class_name, schedule, draws(1))


CONDITIONINGS: dict[str, Callable[[], Conditioning]] = {
    "nothing": Conditioning,
    "first frame": lambda: FirstFrame(frame_tokens=4, tokens=12),
    "no strengths": lambda: TokenStrengths(np.zeros(1, np.float32)),
    "strengths": lambda: TokenStrengths(STRENGTHS),
    "strengths with noise": lambda: TokenStrengths(
        STRENGTHS, initial=draws(2)(), noise_scale=0.15, draw_noise=draws(3)
    ),
}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SAMPLERS = {
    **{
        f"flow, {name}{', stochastic' if stochastic else ''}": flow(make, stochastic=stochastic)
        for name, make in CONDITIONINGS.items()
        for stochastic in (False, True)
    },
    "DDIM": cogvideox(DDIM),
    "DDIM, v": cogvideox(DDIM, prediction_type="v_prediction", **ZERO_SNR),
    "DDIM, sample": cogvideox(DDIM, prediction_type="sample"),
    "DPM": cogvideox(DPM, timestep_spacing="trailing"),
    "DPM, v": cogvideox(DPM, prediction_type="v_prediction", **ZERO_SNR),
}


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS)
def samplers(request: pytest.FixtureRequest) -> tuple[Sampler, Sampler]:
    """The same sampler twice: both draw the same noise."""
    return request.param(), request.param()


def assert_near(moved: np.ndarray, latents: np.ndarray) -> None:
    np.testing.assert_allclose(moved, latents, rtol=0, atol=2e-6 * max(1, np.abs(latents).max()))


def test_linear_forms_are_the_steps(samplers: tuple[Sampler, Sampler]) -> None:
    stepped, linear = samplers
    latents, denoised = draws(7)(), np.zeros(SHAPE, np.float32)
    predict = draws(8)

    def apply(form: LinearStep, latents: np.ndarray, guided: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise = form.draw() if form.draw else None
        return form.apply(latents, guided, noise, denoised if linear.anchor is None else linear.anchor)

    moved = latents
    for index in range(len(stepped.sigmas)):
        prediction = predict()
        latents = stepped.prepare(index, latents)
        preparation = linear.linear_preparation(index)
        if preparation is not None:
            moved, _ = apply(preparation, moved, prediction)
        assert_near(moved, latents)
        latents = stepped.step(index, prediction, latents)
        moved, denoised = apply(linear.linear_step(index), moved, prediction)
        assert_near(moved, latents)


def test_kept_tokens_keep_their_bits() -> None:
    sampler = flow(CONDITIONINGS["first frame"], stochastic=False)()
    latents = draws(0)()
    for index in range(len(sampler.sigmas)):
        moved, _ = sampler.linear_step(index).apply(latents, draws(1)(), None, None)
        np.testing.assert_array_equal(moved[:, :4], latents[:, :4])
        assert (moved[:, 4:] != latents[:, 4:]).any()


def test_a_flows_clean_latents_are_where_its_velocity_leads() -> None:
    sampler, noise, target = SAMPLERS["flow, nothing"](), draws(0)(), draws(1)()
    sigma = sampler.sigmas[2]
    _, denoised = sampler.linear_step(2).apply((1 - sigma) * target + sigma * noise, noise - target, None, None)
    np.testing.assert_allclose(denoised, target, rtol=0, atol=2e-6)


def test_coefficients_are_of_one_token_or_of_each() -> None:
    step = LinearStep(prediction=np.arange(3), noise=0.5)
    assert step.coefficients(3).shape == (6, 3, 1)
    assert step.coefficients(3).dtype == np.float32
    np.testing.assert_array_equal(step.coefficients(3)[:, 2, 0], [1, 2, 0.5, 0, 1, 0])
    with pytest.raises(ValueError, match="broadcast"):
        step.coefficients(2)


GUIDANCE = (
    StepGuidance(),
    StepGuidance(scale=3.5),
    StepGuidance(stg_scale=2.0, stg_blocks=(1,)),
    StepGuidance(scale=3.5, stg_scale=2.0, stg_blocks=(1,)),
)


@pytest.mark.parametrize("guided", GUIDANCE, ids=lambda each: "+".join(each.passes))
def test_weights_combine_as_combine_does(guided: StepGuidance) -> None:
    predictions = draws(0, (len(guided.passes), *SHAPE))()
    weights, positive, projected = guided.weights()
    assert not projected.any()
    cond = np.tensordot(positive, predictions, 1)
    combined = cond + np.tensordot(weights, cond - predictions, 1)
    np.testing.assert_allclose(combined, guided.combine(predictions.reshape(-1, *SHAPE[1:])), rtol=0, atol=4e-6)
