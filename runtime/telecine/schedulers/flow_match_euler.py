"""diffusers' FlowMatchEulerDiscreteScheduler in NumPy, bit for bit.

A schedule is a function of (config, request) and a step is a function of (schedule, index): there is no
state to reset between runs. The precision of every line below is diffusers': sigmas that a caller passes are
shifted in float32, the default ones in float64 and rounded at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError, RequestError

CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
_KARRAS_RHO = 7.0  # Karras et al. 2022, section 5
_LARGEST_MU = math.log(float(np.finfo(np.float32).max))
_EXPORT_AGAIN = "Export the bundle again from a source that this release of telecine supports."

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowMatchEulerConfig:
    """The fields and defaults of diffusers' FlowMatchEulerDiscreteScheduler.

    Raises:
        BundleError: a value is of the wrong type, unknown, or at odds with another.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    time_shift_type: str = "exponential"
    stochastic_sampling: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FlowMatchEulerConfig:
        """The configuration in a `scheduler_config.json`; keys that start with "_" are diffusers' own notes.

        Raises:
            BundleError: another scheduler's configuration, an unknown key, or a value that is refused.
        """
        class_name = config.get("_class_name", CLASS_NAME)
        if class_name != CLASS_NAME:
            raise _bad_config(f"the scheduler is {class_name}", CLASS_NAME)
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        known = [field.name for field in fields(cls)]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise _bad_config(f"the scheduler config has {', '.join(unknown)}", f"only the keys {', '.join(known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if self.num_train_timesteps < 1:
            raise _bad_config(f"num_train_timesteps is {self.num_train_timesteps}", "at least 1")
        if self.time_shift_type not in ("exponential", "linear"):
            raise _bad_config(f"time_shift_type is {self.time_shift_type!r}", "'exponential' or 'linear'")
        spacings = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        chosen = [name for name in spacings if getattr(self, name)]
        if len(chosen) > 1:
            raise _bad_config(f"the scheduler config sets {' and '.join(chosen)}", "at most one of them")
        if self.use_beta_sigmas:
            # It needs SciPy's Beta.ppf, and no published LTX configuration uses it.
            raise _bad_config("use_beta_sigmas is true", "karras, exponential or plain sigmas")


# eq=False: comparing arrays with == has no single truth value.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """(N,) timesteps and (N + 1,) sigmas, both float32: what the network is told and where the steps lead.

    Timesteps run on 0..num_train_timesteps, sigmas on 0..1; the last sigma ends the last step.
    """

    timesteps: npt.NDArray[np.float32]
    sigmas: npt.NDArray[np.float32]


def calculate_shift(tokens: int, config: FlowMatchEulerConfig) -> float:
    """Map the number of tokens T to mu, the exponent of dynamic shifting: linear between two lengths.

    Raises:
        BundleError: the two lengths are equal.

    Source: diffusers `pipeline_ltx.calculate_shift`, fed from the scheduler's configuration.
    """
    base, longest = config.base_image_seq_len, config.max_image_seq_len
    if base == longest:
        raise _bad_config(f"base_image_seq_len and max_image_seq_len are both {base}", "two lengths")
    slope = (config.max_shift - config.base_shift) / (longest - base)
    return tokens * slope + (config.base_shift - slope * base)


def pipeline_sigmas(num_inference_steps: int) -> npt.NDArray[np.float64]:
    """(N,) float64 sigmas 1 .. 1/N, as diffusers' LTX pipelines hand them to the scheduler.

    Raises:
        RequestError: N is below 1.

    Source: diffusers `LTXPipeline.__call__`, step 5.
    """
    count = _step_count(num_inference_steps)
    return np.linspace(1.0, 1 / count, count)


def make_schedule(
    config: FlowMatchEulerConfig,
    *,
    num_inference_steps: int | None = None,
    sigmas: npt.ArrayLike | None = None,
    timesteps: npt.ArrayLike | None = None,
    mu: float | None = None,
) -> Schedule:
    """(N,) timesteps and (N + 1,) sigmas for a number of steps, or for given sigmas, timesteps or both.

    Given timesteps are kept verbatim (unless the configuration inverts sigmas, as in diffusers); sigmas are
    always shifted. `mu` is `calculate_shift`'s; only dynamic shifting reads it.

    Raises:
        RequestError: the request is empty, contradicts itself, is not strictly descending or out of range,
            lacks mu, or has no finite schedule.

    Source: diffusers `FlowMatchEulerDiscreteScheduler.set_timesteps`.
    """
    given_timesteps = given_sigmas = None
    if timesteps is not None:
        given_timesteps = _descending("timesteps", timesteps, config.num_train_timesteps)
    if sigmas is not None:
        given_sigmas = _descending("sigmas", sigmas, 1)
    count = _agreed_count(num_inference_steps, sigmas=given_sigmas, timesteps=given_timesteps)

    spaced: Floats
    if given_sigmas is not None:
        spaced = given_sigmas
    elif given_timesteps is not None:
        spaced = given_timesteps / config.num_train_timesteps
    else:
        spaced = _default_sigmas(config, count)
    spaced = _shift(config, spaced, mu)
    if config.shift_terminal:
        spaced = _stretch_to_terminal(spaced, config.shift_terminal)
    spaced = _respace(config, spaced)

    final = spaced.astype(np.float32)
    if config.invert_sigmas:
        final = 1 - final
    if given_timesteps is None or config.invert_sigmas:
        given_timesteps = final * np.float32(config.num_train_timesteps)
    end = np.float32(1 if config.invert_sigmas else 0)
    return Schedule(timesteps=given_timesteps, sigmas=np.append(final, end))


def step(
    config: FlowMatchEulerConfig,
    schedule: Schedule,
    index: int,
    velocity: npt.NDArray[np.float32],
    sample: npt.NDArray[np.float32],
    *,
    noise: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Move a sample of any shape, float32, along a velocity of that shape from sigma `index` to the next.

    Plain: x + (s' - s) v. With `stochastic_sampling`: x0 = x - s v, then (1 - s') x0 + s' noise, where noise
    is standard normal. The inputs are left as they are.

    Raises:
        RequestError: the configuration samples stochastically and there is no noise.

    Source: diffusers `FlowMatchEulerDiscreteScheduler.step`; Esser et al. 2024 for the flow.
    """
    assert 0 <= index < len(schedule.timesteps)
    assert velocity.shape == sample.shape
    sigma, following = schedule.sigmas[index], schedule.sigmas[index + 1]
    # One output buffer, and multiply-then-add as two roundings: that is what torch does.
    if not config.stochastic_sampling:
        out = np.multiply(velocity, following - sigma, dtype=np.float32)
        return np.add(sample, out, out=out)
    if noise is None:
        raise RequestError(
            "a stochastic step got no noise",
            expected="standard normal noise of the sample's shape",
            fix="Draw it from the request's second noise stream.",
        )
    out = np.multiply(velocity, sigma, dtype=np.float32)
    np.subtract(sample, out, out=out)
    out *= np.float32(1) - following
    out += noise * following
    return out


def _default_sigmas(config: FlowMatchEulerConfig, count: int) -> npt.NDArray[np.float64]:
    """(N,) float64 sigmas, evenly spaced between the largest and the smallest of training."""
    steps = config.num_train_timesteps
    ends = np.array([steps, 1], np.float32) / steps
    if not config.use_dynamic_shifting:
        # Shifted here in float32 and again, with the rest of the schedule, in `_shift`: diffusers does both.
        ends = config.shift * ends / (1 + (config.shift - 1) * ends)
    largest, smallest = ends.tolist()
    spaced: npt.NDArray[np.float64] = np.linspace(largest * steps, smallest * steps, count) / steps
    return spaced


def _shift(config: FlowMatchEulerConfig, sigmas: Floats, mu: float | None) -> Floats:
    """(N,) sigmas moved towards noise, by a constant or by mu."""
    if not config.use_dynamic_shifting:
        return config.shift * sigmas / (1 + (config.shift - 1) * sigmas)
    if mu is None:
        raise RequestError(
            "mu is missing",
            expected="mu, since this bundle's scheduler shifts by the number of tokens",
            fix="Pass mu=calculate_shift(tokens, config).",
        )
    if config.time_shift_type == "exponential" and mu > _LARGEST_MU:
        raise RequestError(
            f"dynamic shifting by mu={mu:.0f}",
            expected=f"at most {_LARGEST_MU:.0f}: float32 has no number for its exponential",
            fix="Ask for fewer frames or a smaller size: mu grows with the number of tokens.",
        )
    weight = math.exp(mu) if config.time_shift_type == "exponential" else float(mu)
    with np.errstate(divide="ignore"):  # a sigma of 0 stays 0, by way of 1 / inf
        return weight / (weight + (1 / sigmas - 1))


def _stretch_to_terminal(sigmas: Floats, terminal: float) -> Floats:
    """(N,) sigmas stretched so that the last one equals `terminal`."""
    data_part = 1 - sigmas
    if data_part[-1] == 0:
        raise RequestError(
            f"{len(sigmas)} inference step{'s' if len(sigmas) > 1 else ''} ending at sigma 1",
            expected=f"a last sigma below 1 to stretch to this bundle's shift_terminal of {terminal} "
            "(diffusers gives NaN here)",
            fix="Use at least 2 inference steps.",
        )
    # A slice, not an element: NumPy 1 would promote float32 scalar / float to float64.
    return 1 - data_part / (data_part[-1:] / (1 - terminal))


def _respace(config: FlowMatchEulerConfig, sigmas: Floats) -> Floats:
    """(N,) sigmas between the same ends, spaced as the configuration says; float64 if they move."""
    first, last, count = float(sigmas[0]), float(sigmas[-1]), len(sigmas)
    if config.use_karras_sigmas:
        first_root, last_root = first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO)
        karras: Floats = (first_root + np.linspace(0, 1, count) * (last_root - first_root)) ** _KARRAS_RHO
        return karras
    if config.use_exponential_sigmas:
        if last <= 0:
            raise RequestError(
                f"the last sigma is {last:g}",
                expected="more than 0, since this bundle's scheduler spaces sigmas by their logarithm",
                fix="Drop the last entry: every schedule ends at 0 by itself.",
            )
        return np.exp(np.linspace(math.log(first), math.log(last), count))
    return sigmas


def _step_count(num_inference_steps: object) -> int:
    if (
        isinstance(num_inference_steps, bool)
        or not isinstance(num_inference_steps, int | np.integer)
        or num_inference_steps < 1
    ):
        raise RequestError(
            f"num_inference_steps is {num_inference_steps!r}",
            expected="a whole number, at least 1",
            fix="Use 30 to 50, or 8 for a distilled model.",
        )
    return int(num_inference_steps)


def _agreed_count(num_inference_steps: int | None, **given: npt.NDArray[np.float32] | None) -> int:
    """N, where a number of steps and the lengths of given arrays must say the same."""
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if num_inference_steps is not None:
        counts["num_inference_steps"] = _step_count(num_inference_steps)
    if not counts:
        raise RequestError(
            "no schedule was asked for",
            expected="num_inference_steps, sigmas or timesteps",
            fix="Pass num_inference_steps.",
        )
    if len(set(counts.values())) > 1:
        raise RequestError(
            "a schedule of " + ", ".join(f"{count} ({name})" for name, count in counts.items()),
            expected="one number of steps",
            fix="Pass lists of one length, and num_inference_steps equal to it or not at all.",
        )
    return counts.popitem()[1]


def _descending(name: str, values: npt.ArrayLike, highest: float) -> npt.NDArray[np.float32]:
    """(N,) float32 copy of strictly descending numbers within 0..highest."""
    try:
        array = np.array(values).astype(np.float32)
    except (TypeError, ValueError):
        array = np.empty(0, np.float32)
    # `not (a > b)` rather than `a <= b`: it also catches NaN.
    if array.ndim != 1 or not len(array) or not (array[0] <= highest and array[-1] >= 0):
        legal = False
    else:
        legal = bool(np.all(array[:-1] > array[1:]))
    if not legal:
        raise RequestError(
            f"{name} is {np.array2string(array, threshold=12) if array.size else values!r}",
            expected=f"a list of strictly descending numbers between {highest} and 0",
            fix=f"Sort {name}, drop repeated values, and leave out the final step's end, which is added.",
        )
    return array


def _check_type(name: str, value: object, default: object) -> None:
    if isinstance(default, bool):
        legal, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        legal, expected = isinstance(value, str), "a string"
    elif isinstance(default, int):
        legal, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        legal, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        legal = legal and math.isfinite(value)  # type: ignore[arg-type]
        if default is None:
            legal, expected = legal or value is None, "a number or null"
    if not legal:
        raise _bad_config(f"{name} is {value!r}", expected)


def _bad_config(got: str, expected: str) -> BundleError:
    return BundleError(got, expected=expected, fix=_EXPORT_AGAIN)
