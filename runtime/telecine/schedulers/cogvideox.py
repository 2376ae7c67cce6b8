"""What diffusers' CogVideoXDDIMScheduler and CogVideoXDPMScheduler share: configuration, noise levels, timesteps.

Noise levels are float64; a coefficient is rounded to float32 where it meets an array, and every product and sum of
arrays is float32: that is what torch does with a 0-dimensional float64 tensor and a float32 one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError, RequestError

DDIM, DPM = "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")

Array = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVideoXSchedulerConfig:
    """The fields and defaults of diffusers' two schedulers; `class_name` says which of them.

    `clip_sample`, `clip_sample_range` and `sample_max_value` change nothing in diffusers, and so they do here.

    Raises:
        BundleError: a value is of the wrong type, unknown, or one that telecine does not have.
    """

    class_name: str = DDIM
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    beta_schedule: str = "scaled_linear"
    trained_betas: None = None
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 3.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CogVideoXSchedulerConfig:
        """The configuration in a `scheduler_config.json`; keys that start with "_" are diffusers' own notes.

        Raises:
            BundleError: another scheduler's configuration, an unknown key, or a value that is refused.
        """
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        known = [field.name for field in fields(cls) if field.name != "class_name"]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise _bad_config(f"the scheduler config has {', '.join(unknown)}", f"only the keys {', '.join(known)}")
        return cls(class_name=config.get("_class_name", DDIM), **options)

    def __post_init__(self) -> None:
        choices = {
            "class_name": (DDIM, DPM),
            "beta_schedule": ("scaled_linear",),  # of every published CogVideoX; the others round in float32
            "trained_betas": (None,),
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _bad_config(f"the scheduler's {name} is {getattr(self, name)!r}", f"one of {allowed}")
        for name in ("num_train_timesteps", "steps_offset"):
            if type(getattr(self, name)) is not int or getattr(self, name) < (name == "num_train_timesteps"):
                raise _bad_config(f"the scheduler's {name} is {getattr(self, name)!r}", "a whole number")
        for name in ("set_alpha_to_one", "rescale_betas_zero_snr"):
            if not isinstance(getattr(self, name), bool):
                raise _bad_config(f"the scheduler's {name} is {getattr(self, name)!r}", "true or false")
        for name in ("beta_start", "beta_end", "snr_shift_scale"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
                raise _bad_config(f"the scheduler's {name} is {value!r}", "a number above 0")


# eq=False: comparing arrays with == has no single truth value.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CogVideoXSchedule:
    """(N,) int64 timesteps 0..num_train_timesteps - 1, and how far each step goes.

    `levels` (num_train_timesteps,) float64 are the cumulative products of alphas; `final_level` that of a step that
    ends before timestep 0. A step from t ends at t - `stride`, which need not be where the next one starts: diffusers
    takes it from the number of steps, not from the list.
    """

    timesteps: npt.NDArray[np.int64]
    stride: int
    levels: Levels
    final_level: float
    prediction_type: str

    @property
    def sigmas(self) -> Array:
        """(N,) share of noise at each timestep, from 1 (noise alone) down."""
        return np.sqrt(1 - self.levels[self.timesteps]).astype(np.float32)

    def level(self, index: int) -> np.float64:
        """Where step `index` starts."""
        return np.float64(self.levels[self.timesteps[index]])

    def next_level(self, index: int) -> np.float64:
        """Where step `index` ends."""
        following = self.timesteps[index] - self.stride
        return np.float64(self.levels[following] if following >= 0 else self.final_level)

    def ends(self, index: int) -> bool:
        """Whether step `index` ends before timestep 0."""
        return bool(self.timesteps[index] - self.stride < 0)

    def last_steps(self, strength: float) -> CogVideoXSchedule:
        """The last int(N · strength) of N steps, at the strides of all N: where a given video begins.

        Raises:
            RequestError: not even one.

        Source: diffusers `CogVideoXVideoToVideoPipeline.get_timesteps`.
        """
        steps = len(self.timesteps)
        kept = min(int(steps * strength), steps)
        if kept < 1:
            raise RequestError(
                f"a strength of {strength:g} of {steps} steps",
                expected="at least one whole step",
                fix="Raise strength or num_inference_steps.",
            )
        return replace(self, timesteps=self.timesteps[steps - kept :])


def noise_levels(config: CogVideoXSchedulerConfig) -> Levels:
    """(num_train_timesteps,) float64 cumulative products of alphas, shifted in SNR, and brought to 0 at the end if so.

    Source: diffusers `CogVideoXDDIMScheduler.__init__`; Lin et al. 2023, algorithm 1, for zero terminal SNR.
    """
    ends = np.sqrt([config.beta_start, config.beta_end])
    betas = np.linspace(ends[0], ends[1], config.num_train_timesteps) ** 2
    levels = np.cumprod(1 - betas)
    levels = levels / (config.snr_shift_scale + (1 - config.snr_shift_scale) * levels)
    if config.rescale_betas_zero_snr:
        roots = np.sqrt(levels)
        first, last = roots[0], roots[-1]
        levels = ((roots - last) * (first / (first - last))) ** 2
    return levels


def make_schedule(config: CogVideoXSchedulerConfig, num_inference_steps: int) -> CogVideoXSchedule:
    """The schedule of N steps.

    Raises:
        RequestError: N is above the number of training timesteps, or one of those for which diffusers' rounding of
            "trailing" timesteps gives one step too many, below timestep 0 (61, 103, 121, ... of 1000).

    Source: diffusers `CogVideoXDDIMScheduler.set_timesteps`.
    """
    train = config.num_train_timesteps
    if not 1 <= num_inference_steps <= train:
        raise RequestError(
            f"num_inference_steps is {num_inference_steps}",
            expected=f"1 to {train}, the timesteps that the model was trained on",
            fix="Use 50.",
        )
    timesteps = _timesteps(config, num_inference_steps)
    if timesteps[-1] < 0 or timesteps[0] >= train:
        raise RequestError(
            f"num_inference_steps is {num_inference_steps}",
            expected=f"a number whose {config.timestep_spacing} timesteps lie in 0..{train - 1}: these go from"
            f" {timesteps[0]} to {timesteps[-1]}, and diffusers would silently run a step outside the schedule",
            fix=f"Use {num_inference_steps - 1} or {num_inference_steps + 1}.",
        )
    levels = noise_levels(config)
    return CogVideoXSchedule(
        timesteps=timesteps,
        stride=train // num_inference_steps,
        levels=levels,
        final_level=1.0 if config.set_alpha_to_one else float(levels[0]),
        prediction_type=config.prediction_type,
    )


def predict_original(schedule: CogVideoXSchedule, index: int, prediction: Array, sample: Array) -> Array:
    """The clean sample that a prediction of any shape, float32, means at step `index`.

    v-prediction: √ᾱ x - √(1 - ᾱ) v.

    Source: Salimans and Ho 2022, appendix D; diffusers `CogVideoXDDIMScheduler.step`.
    """
    level = schedule.level(index)
    signal, noise = np.float32(np.sqrt(level)), np.float32(np.sqrt(1 - level))
    if schedule.prediction_type == "v_prediction":
        out = np.multiply(sample, signal, dtype=np.float32)
        out -= noise * prediction
        return out
    if schedule.prediction_type == "sample":
        return prediction
    out = np.subtract(sample, noise * prediction, dtype=np.float32)
    out /= signal
    return out


def original_weights(schedule: CogVideoXSchedule, index: int) -> tuple[np.float64, np.float64]:
    """What `predict_original` weighs the sample and the prediction by."""
    level = schedule.level(index)
    signal, noise = np.sqrt(level), np.sqrt(1 - level)
    if schedule.prediction_type == "v_prediction":
        return signal, -noise
    if schedule.prediction_type == "sample":
        return np.float64(0), np.float64(1)
    return 1 / signal, -noise / signal


def add_noise(schedule: CogVideoXSchedule, original: Array, noise: Array) -> Array:
    """Bring a clean sample of any shape, float32, to the noise at which the schedule begins.

    √ᾱ x + √(1 - ᾱ) noise, where ᾱ is rounded to float32 first.

    Source: diffusers `CogVideoXDDIMScheduler.add_noise`.
    """
    level = np.float32(schedule.level(0))
    out = np.multiply(original, np.sqrt(level), dtype=np.float32)
    out += np.sqrt(np.float32(1) - level) * noise
    return out


def _timesteps(config: CogVideoXSchedulerConfig, count: int) -> npt.NDArray[np.int64]:
    train = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, train - 1, count).round()[::-1].astype(np.int64)
    if config.timestep_spacing == "leading":
        return np.arange(count, dtype=np.int64)[::-1] * (train // count) + config.steps_offset
    return np.round(np.arange(train, 0, -train / count)).astype(np.int64) - 1


def _bad_config(got: str, expected: str) -> BundleError:
    return BundleError(
        got, expected=expected, fix="Export the bundle again from a source that this release of telecine supports."
    )
