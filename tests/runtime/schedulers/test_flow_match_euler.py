"""Oracle: diffusers' FlowMatchEulerDiscreteScheduler, compared bit for bit."""

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx import pipeline_ltx

from telecine.errors import BundleError, RequestError
from telecine.schedulers.flow_match_euler import (
    FlowMatchEulerConfig,
    Schedule,
    calculate_shift,
    make_schedule,
    pipeline_sigmas,
    step,
)

COUNTS = (1, 2, 3, 8, 30, 50)
LTX = {
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}
SHIFTS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "num_train_timesteps": 750},
]
SPACINGS: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
CONFIGS = [
    {**shift, **spacing, "shift_terminal": terminal, "invert_sigmas": invert}
    for shift, spacing, terminal, invert in itertools.product(SHIFTS, SPACINGS, (None, 0.1), (False, True))
]


def label(config: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in config.items() if value) or "plain"


def requests(source: str, count: int, train_steps: int) -> dict[str, Any]:
    """The arguments of a schedule of `count` steps, asked for in one of the four ways."""
    rng = np.random.default_rng(count)
    timesteps = np.sort(rng.uniform(1, train_steps, count))[::-1].tolist()
    return {
        "count": {"num_inference_steps": count},
        "sigmas": {"sigmas": np.linspace(1.0, 1 / count, count)},
        "timesteps": {"timesteps": timesteps},
        "both": {
            "num_inference_steps": count,
            "timesteps": timesteps,
            "sigmas": [t / train_steps for t in timesteps],
        },
    }[source]


def oracle(config: dict[str, Any], **request: Any) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(**request)
    return scheduler


def assert_same(schedule: Schedule, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
    assert schedule.timesteps.dtype == schedule.sigmas.dtype == np.float32
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    np.testing.assert_array_equal(schedule.sigmas, scheduler.sigmas.numpy())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # diffusers' own 0 / 0, which telecine refuses
@pytest.mark.parametrize("source", ["count", "sigmas", "timesteps", "both"])
@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_every_option_matches_diffusers(config: dict[str, Any], source: str) -> None:
    ours = FlowMatchEulerConfig.from_dict(config)
    for count in COUNTS:
        request = requests(source, count, ours.num_train_timesteps) | {"mu": 1.37}
        theirs = oracle(config, **request)
        if torch.isfinite(theirs.sigmas).all():
            assert_same(make_schedule(ours, **request), theirs)
        else:
            assert config["shift_terminal"]
            assert count == 1
            with pytest.raises(RequestError, match=r"shift_terminal of 0\.1 \(diffusers gives NaN"):
                make_schedule(ours, **request)


@pytest.mark.parametrize("tokens", [1, 4, 1024, 2688, 6144, 7392, 32256])
@pytest.mark.parametrize("count", COUNTS[1:])
def test_ltx_schedule_as_the_pipeline_asks_for_it(tokens: int, count: int) -> None:
    config = FlowMatchEulerConfig.from_dict(LTX)
    mu = pipeline_ltx.calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
    assert calculate_shift(tokens, config) == mu
    ours = make_schedule(config, sigmas=pipeline_sigmas(count), mu=mu)
    assert_same(ours, oracle(LTX, sigmas=np.linspace(1.0, 1 / count, count), mu=mu))
    assert ours.sigmas[0] == 1
    assert ours.sigmas[-2] == pytest.approx(0.1)
    assert ours.sigmas[-1] == 0


def test_class_default_shift_of_a_known_length() -> None:
    config = FlowMatchEulerConfig()
    assert calculate_shift(256, config) == 0.5
    assert calculate_shift(5000, config) == pipeline_ltx.calculate_shift(5000)


@pytest.mark.parametrize(
    "timesteps",
    [
        [1000, 993, 987, 981, 975, 909, 725, 0.03],  # LTX-Video 0.9.8 distilled
        [1000, 909, 725, 421, 0],
        np.array([500.5, 3.25], np.float64),
    ],
)
@pytest.mark.parametrize("options", [{}, {"use_dynamic_shifting": True}, {"use_karras_sigmas": True}])
def test_custom_timesteps_are_kept_verbatim(timesteps: Any, options: dict[str, Any]) -> None:
    ours = make_schedule(FlowMatchEulerConfig(**options), timesteps=timesteps, mu=0.7)
    np.testing.assert_array_equal(ours.timesteps, np.asarray(timesteps, np.float32))
    with np.errstate(divide="ignore"):
        assert_same(ours, oracle(options, timesteps=timesteps, mu=0.7))


def test_making_a_schedule_leaves_the_caller_s_lists_alone() -> None:
    timesteps, sigmas = np.array([900, 400], np.float32), np.array([0.8, 0.3], np.float32)
    schedule = make_schedule(FlowMatchEulerConfig(shift=2.0), timesteps=timesteps, sigmas=sigmas)
    schedule.timesteps[:] = 0
    np.testing.assert_array_equal(timesteps, np.float32([900, 400]))
    np.testing.assert_array_equal(sigmas, np.float32([0.8, 0.3]))


@pytest.mark.filterwarnings("error")
def test_a_sigma_of_zero_warns_of_nothing() -> None:
    schedule = make_schedule(FlowMatchEulerConfig(use_dynamic_shifting=True), timesteps=[500, 0], mu=1.0)
    assert schedule.sigmas[1] == 0


@pytest.mark.parametrize("count", COUNTS)
def test_pipeline_sigmas(count: int) -> None:
    sigmas = pipeline_sigmas(count)
    assert sigmas.dtype == np.float64
    np.testing.assert_array_equal(sigmas, np.linspace(1.0, 1 / count, count))


@pytest.mark.parametrize("config", [{}, LTX, {"shift": 5.0}, {"invert_sigmas": True}], ids=label)
@pytest.mark.parametrize("shape", [(2, 35, 16), (1, 3, 2, 5, 7)])
def test_a_run_of_steps_matches_diffusers(config: dict[str, Any], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    ours = FlowMatchEulerConfig.from_dict(config)
    request = {"sigmas": pipeline_sigmas(8), "mu": 1.5}
    theirs, schedule = oracle(config, **request), make_schedule(ours, **request)
    sample = rng.standard_normal(shape, dtype=np.float32)
    expected = torch.from_numpy(sample.copy())
    for index, timestep in enumerate(theirs.timesteps):
        velocity = rng.standard_normal(shape, dtype=np.float32)
        before = sample.copy(), velocity.copy()
        moved = step(ours, schedule, index, velocity, sample)
        expected = theirs.step(torch.from_numpy(velocity), timestep, expected, return_dict=False)[0]
        assert moved.dtype == np.float32
        np.testing.assert_array_equal(moved, expected.numpy())
        np.testing.assert_array_equal(sample, before[0])
        np.testing.assert_array_equal(velocity, before[1])
        sample = moved


def test_stochastic_steps_match_diffusers() -> None:
    options = LTX | {"stochastic_sampling": True}
    ours = FlowMatchEulerConfig.from_dict(options)
    request = {"num_inference_steps": 5, "mu": 1.5}
    theirs, schedule = oracle(options, **request), make_schedule(ours, **request)
    shape = (2, 21, 8)
    sample = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    expected = torch.from_numpy(sample.copy())
    for index, timestep in enumerate(theirs.timesteps):
        velocity = np.random.default_rng(index).standard_normal(shape, dtype=np.float32)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(index)).numpy()
        kept = noise.copy()
        sample = step(ours, schedule, index, velocity, sample, noise=noise)
        expected = theirs.step(
            torch.from_numpy(velocity),
            timestep,
            expected,
            generator=torch.Generator().manual_seed(index),
            return_dict=False,
        )[0]
        np.testing.assert_array_equal(sample, expected.numpy())
        np.testing.assert_array_equal(noise, kept)


def test_stochastic_step_without_noise() -> None:
    config = FlowMatchEulerConfig(stochastic_sampling=True)
    schedule = make_schedule(config, num_inference_steps=2)
    zeros = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(RequestError, match="got no noise"):
        step(config, schedule, 0, zeros, zeros)


@pytest.mark.parametrize(("index", "width"), [(-1, 3), (2, 3), (0, 4)])
def test_steps_that_do_not_exist_are_bugs(index: int, width: int) -> None:
    config = FlowMatchEulerConfig()
    schedule = make_schedule(config, num_inference_steps=2)
    with pytest.raises(AssertionError):
        step(config, schedule, index, np.zeros((1, 2, width), np.float32), np.zeros((1, 2, 3), np.float32))


@pytest.mark.parametrize("count", [0, -3, 2.0, "8", True])
def test_bad_step_counts(count: Any) -> None:
    with pytest.raises(RequestError, match="num_inference_steps is"):
        make_schedule(FlowMatchEulerConfig(), num_inference_steps=count)
    with pytest.raises(RequestError, match="num_inference_steps is"):
        pipeline_sigmas(count)


@pytest.mark.parametrize("terminal", [0.1, 0.25])
def test_one_step_cannot_be_stretched_to_a_terminal(terminal: float) -> None:
    config = FlowMatchEulerConfig(shift_terminal=terminal)
    with pytest.raises(RequestError, match=rf"1 inference step ending .*{terminal} \(diffusers gives NaN"):
        make_schedule(config, num_inference_steps=1)
    assert_same(make_schedule(config, sigmas=[0.5]), oracle({"shift_terminal": terminal}, sigmas=[0.5]))


@pytest.mark.parametrize(
    "timesteps",
    [
        [],
        [500, math.nan],
        [math.nan],
        [math.inf, 500],
        [500, -math.inf],
        [500, 500],
        [500, 500 - 1e-9],  # equal once in float32
        [400, 500],
        [1000.5, 3],
        [500, -1],
        [[500, 400]],
        [[500], [400, 300]],
        ["a", "b"],
        500,
    ],
)
def test_bad_timesteps_and_sigmas(timesteps: Any) -> None:
    with pytest.raises(RequestError, match="expected a list of strictly descending numbers between 1000 and 0"):
        make_schedule(FlowMatchEulerConfig(), timesteps=timesteps)
    with pytest.raises(RequestError, match=r"sigmas is .* between 1 and 0"):
        make_schedule(FlowMatchEulerConfig(), sigmas=timesteps)


def test_the_range_of_timesteps_is_the_configuration_s() -> None:
    assert make_schedule(FlowMatchEulerConfig(), timesteps=[900]).timesteps == 900
    with pytest.raises(RequestError, match="between 750 and 0"):
        make_schedule(FlowMatchEulerConfig(num_train_timesteps=750), timesteps=[900])


def test_dynamic_shifting_needs_mu() -> None:
    with pytest.raises(RequestError, match="mu is missing"):
        make_schedule(FlowMatchEulerConfig.from_dict(LTX), num_inference_steps=4)


def test_logarithmic_spacing_cannot_reach_zero() -> None:
    with pytest.raises(RequestError, match="last sigma is 0; expected more than 0"):
        make_schedule(FlowMatchEulerConfig(use_exponential_sigmas=True), timesteps=[500, 0])


@pytest.mark.parametrize(
    "request_",
    [
        {"num_inference_steps": 3, "timesteps": [2, 1]},
        {"num_inference_steps": 3, "sigmas": [0.2, 0.1]},
        {"timesteps": [3, 2, 1], "sigmas": [0.2, 0.1]},
    ],
)
def test_lengths_must_agree(request_: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="one number of steps"):
        make_schedule(FlowMatchEulerConfig(), **request_)


def test_an_empty_request() -> None:
    with pytest.raises(RequestError, match="no schedule was asked for"):
        make_schedule(FlowMatchEulerConfig())


def test_config_has_diffusers_fields_and_defaults() -> None:
    parameters = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters.values()
    expected = {p.name: p.default for p in parameters if p.name != "self"}
    ours = FlowMatchEulerConfig()
    assert {name: getattr(ours, name) for name in ours.__dataclass_fields__} == expected


def test_a_saved_diffusers_config_is_read() -> None:
    saved = dict(FlowMatchEulerDiscreteScheduler(**LTX).config)
    saved |= {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.42.1"}
    assert FlowMatchEulerConfig.from_dict(saved) == FlowMatchEulerConfig(**LTX)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "the scheduler is DDIMScheduler"),
        ({"sigma_max": 1.0, "beta": 2}, "has beta, sigma_max; expected only the keys num_train_timesteps"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "at most one of them"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas is true"),
        ({"time_shift_type": "cubic"}, "time_shift_type is 'cubic'"),
        ({"time_shift_type": None}, "time_shift_type is None; expected a string"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 1e3}, "num_train_timesteps is 1000.0; expected a whole number"),
        ({"shift": "3"}, "shift is '3'; expected a number"),
        ({"shift": math.nan}, "shift is nan; expected a number"),
        ({"base_shift": None}, "base_shift is None; expected a number"),
        ({"shift_terminal": "0.1"}, "shift_terminal is '0.1'; expected a number or null"),
        ({"invert_sigmas": 1}, "invert_sigmas is 1; expected true or false"),
        ({"max_shift": True}, "max_shift is True; expected a number"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        FlowMatchEulerConfig.from_dict(config)


def test_shift_between_equal_lengths() -> None:
    config = FlowMatchEulerConfig(base_image_seq_len=4096)
    with pytest.raises(BundleError, match="are both 4096"):
        calculate_shift(100, config)


def test_more_tokens_than_the_shift_can_take() -> None:
    config = FlowMatchEulerConfig(use_dynamic_shifting=True)
    with pytest.raises(RequestError, match="fewer frames or a smaller size"):
        make_schedule(config, num_inference_steps=4, mu=calculate_shift(10**7, config))
    assert np.isfinite(make_schedule(config, num_inference_steps=4, mu=88.0).sigmas).all()
