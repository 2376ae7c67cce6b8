"""What NumPy does to recorded arrays, run as a program, is what it does to arrays: to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from telecine.conditioning import lerp, sample_posterior
from telecine.errors import RequestError
from telecine.families.ltx_video.text import without_padding
from telecine.guidance import StepGuidance, deviation
from telecine.latents import denormalize, mix_decode_noise, pack, unpack
from telecine.pixels import to_uint8, to_unit_range
from telecine.plan.document import as_json, document
from telecine.plan.recorder import Recorder
from telecine.shapes import LatentShape

Array = npt.NDArray[Any]
Function = Callable[..., Any]


@pytest.fixture
def run(replay: Any, tmp_path: Path) -> Callable[..., Array]:
    """`run(function, x, y, ...)`: the function recorded, and the program run on these values."""

    def recorded(function: Function, *values: Array) -> Array:
        recorder = Recorder()
        names = [f"input_{index}" for index in range(len(values))]
        inputs = [
            recorder.empty(value.shape, value.dtype, name=name, asked=True)
            for name, value in zip(names, values, strict=True)
        ]
        made = function(*inputs)
        result = made if made.ndim > 1 else made.reshape(1, -1)
        recorder.emit(result, 0)
        output = {"shape": list(result.shape), "dtype": result.dtype.name}
        content = document(recorder.program, SimpleNamespace(root=tmp_path), {"output": output})  # type: ignore[arg-type]
        (tmp_path / "plan.json").write_text(as_json(content))
        constants = {each.name: each.constant for each in recorder.program.buffers() if each.constant is not None}
        save_file(constants, tmp_path / "tensors.safetensors")
        given = {name: value for name, value in zip(names, values, strict=True) if name in content["inputs"]}
        run: Array = replay(tmp_path, tmp_path).run(given)["result"]
        return run.reshape(made.shape)

    return recorded


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def in_place(x: Array) -> Array:
    """Views, and changes through them, as the tiles make them."""
    out = x * np.float32(2)
    part = out[:, 1:, ::2]
    part += x[:, :-1, ::2]
    out[:, :1] = -1
    np.moveaxis(out, 2, 0)[:2] *= np.float32(0.3)
    return out


def overlapping(x: Array) -> Array:
    out = x.copy()
    out[:, 1:] = out[:, :-1]
    out[:, :-1] += out[:, 1:]
    return out


def masked(x: Array) -> Array:
    return np.where(np.array([True, False, False, True, True])[:, np.newaxis], x, x * np.float32(3))


def into_known(x: Array) -> Array:
    out = normal(2, 5, 7, seed=6)
    out -= x * np.float32(3)
    out *= np.float32(0.5)
    return out


def still_known(x: Array) -> Array:
    out = normal(2, 5, 7, seed=6)
    np.add(out, x, out=out)  # its result is dropped, and `out` is used for it
    return x + out


def accumulated(x: Array) -> Array:
    out = np.zeros_like(x, shape=(2, 6, 8))
    out[:, :5, :7] += x
    out[:, 1:, 1:] += x * normal(5, 1, seed=2)
    return out


FUNCTIONS: dict[str, Function] = {
    "in place": in_place,
    "overlapping views": overlapping,
    "a known mask": masked,
    "into a known array": into_known,
    "a mask over what is broadcast": lambda x: np.where(np.eye(5, 1, dtype=bool), x[:, :1], x),
    "a sum of tiles": accumulated,
    "repeat": lambda x: np.repeat(x, 3, axis=1),
    "concatenate with what is known": lambda x: np.concatenate([normal(2, 2, 7, seed=3), x, x[:, :1]], axis=1),
    "split": lambda x: np.subtract(*np.split(x, 2)),
    "split at places": lambda x: np.concatenate(np.split(x, [2, 2, 4], axis=1)[::-1], axis=1),
    "pad": lambda x: np.pad(x, [(0, 0), (1, 2), (0, 0)]),
    "reshape that copies": lambda x: x.transpose(0, 2, 1).reshape(2, -1),
    "float64 between": lambda x: lerp(normal(2, 5, 7, seed=4), x, 0.7),
    "float64 from the other end": lambda x: lerp(x, normal(2, 5, 7, seed=4), 0.3),
    "Python numbers round to float32 first": lambda x: x * 0.1 + 0.7 - x / 3,
    "a float64 array makes float64": lambda x: (x * np.arange(7) / 3).astype(np.float32),
    "float64 rounded where float32 is asked for": lambda x: np.multiply(x, x * np.float64(0.1), dtype=np.float32),
    "deviation": deviation,
    "pack": lambda x: pack(x.reshape(1, 2, 1, 5, 7)),
    "unpack": lambda x: unpack(x, LatentShape(frames=1, height=5, width=1)),
    "denormalize": lambda x: denormalize(x.reshape(1, 2, 5, 7, 1), normal(2), normal(2, seed=1), 1.3),
    "decode noise": lambda x: mix_decode_noise(x.reshape(2, 1, 5, 7, 1), normal(2, 1, 5, 7, 1, seed=5), [0.2, 0.7]),
    "frames": lambda x: to_unit_range(np.repeat(x, 3, axis=0).reshape(2, 3, 1, 5, 7)),
    "bytes": lambda x: to_uint8(to_unit_range(np.repeat(x, 3, axis=0).reshape(2, 3, 1, 5, 7))),
    "text without padding": lambda x: without_padding(x, np.repeat(np.eye(1, 5, 1, dtype=np.float32), 2, axis=0))[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_program_gives_what_numpy_gives(run: Callable[..., Array], name: str) -> None:
    values = normal(2, 5, 7)
    want, got = FUNCTIONS[name](values.copy()), run(FUNCTIONS[name], values)
    np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize(
    "guidance",
    [
        StepGuidance(scale=3.0),
        StepGuidance(scale=3.0, rescale=0.7),
        StepGuidance(scale=3.0, cfg_star=True),
        StepGuidance(stg_scale=1.5, rescale=0.4),
        StepGuidance(scale=2.0, stg_scale=1.5, rescale=1.0, cfg_star=True),
    ],
)
def test_guidance_of_a_batch(run: Callable[..., Array], guidance: StepGuidance) -> None:
    velocities = normal(len(guidance.passes) * 2, 5, 7)
    want, got = guidance.combine(velocities.copy()), run(guidance.combine, velocities)
    # The standard deviation and the product of thousands of numbers are summed in another order, in float64.
    np.testing.assert_allclose(got, want, rtol=2e-7)


def test_a_posterior_is_sampled(run: Callable[..., Array]) -> None:
    moments, noise = 40 * normal(1, 3, 2, 5, 7), normal(1, 2, 2, 5, 7, seed=1)
    want, got = sample_posterior(moments, noise), run(lambda x: sample_posterior(x, noise), moments)
    # NumPy's float32 exp and the float64 one, rounded, differ in the last bit.
    np.testing.assert_allclose(got, want, rtol=3e-7)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (np.asarray, "its values"),
        (lambda x: np.multiply(x, 2, out=np.empty((2, 5, 7), np.float32)), "numpy.multiply into an array"),
        (still_known, "a known array that was changed"),
        (np.tanh, "numpy.tanh"),
        (np.linalg.norm, "numpy.linalg.norm"),
        (lambda x: x.mean(), "ndarray.mean"),
        (lambda x: x[np.array([0, 1])], "indexing by arrays"),
        (lambda x: x[0, 0, 0], "indexing by arrays or down to a number"),
        (lambda x: np.where(x, x, x), "a choice between values"),
        (np.add.reduce, "numpy.add"),
    ],
)
def test_what_a_plan_cannot_hold_is_refused(function: Function, what: str) -> None:
    with pytest.raises(RequestError, match=f"this request needs {what}"):
        function(Recorder().empty((2, 5, 7), np.float32))


def test_equal_constants_are_one_and_are_set_once() -> None:
    recorder = Recorder()
    x, y = recorder.empty((4,), np.float32), recorder.empty((4,), np.float32)
    for values in (x, y, x):
        values[:] = np.arange(4, dtype=np.float32)
    x[:1] = 0  # then x holds something else, and is set again
    x[:] = np.arange(4, dtype=np.float32)
    steps = recorder.program.steps
    assert len(steps) == 4
    assert len(recorder.program.buffers()) == 3


def test_what_nobody_reads_is_left_out() -> None:
    recorder = Recorder()
    asked, unasked = (recorder.empty((2, 3), np.float32, name=name, asked=True) for name in ("x", "y"))
    half = unasked * np.float32(0.5)
    half += 1  # two steps of what ends there, beside two of what is emitted
    made = asked + 1
    made[:1] = asked[1:]
    recorder.emit(made, 0)
    needed = recorder.program.needed()
    assert needed.steps == [*recorder.program.steps[2:]]
    assert [buffer.name for buffer in needed.buffers() if buffer.asked] == ["x"]
