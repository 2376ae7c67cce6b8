"""Weightless graphs on ONNX Runtime, against the NumPy that they stand for; the oracle of that is diffusers, elsewhere.

Tolerances: the same float32 sums in another order, about 1e-6 of values around 1; bytes are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from telecine.guidance import StepGuidance
from telecine.latents import denormalize, mix_decode_noise
from telecine.linear_step import LinearStep
from telecine.pixels import to_uint8, to_unit_range
from telecine_export.families.weightless import decoder_latents, denoise_step, uint8_frames
from telecine_export.graphs import GraphSpec
from telecine_export.trace import seal, trace

GUIDED = {
    "alone": StepGuidance(),
    "alone, rescaled": StepGuidance(rescale=0.7),
    "classifier-free": StepGuidance(scale=3.0),
    "rescaled": StepGuidance(scale=7.5, rescale=0.7),
    "projected": StepGuidance(scale=5.0, cfg_star=True),
    "perturbed": StepGuidance(stg_scale=1.5, stg_blocks=(0,)),
    "all": StepGuidance(scale=3.0, rescale=1.0, stg_scale=2.0, stg_blocks=(0,), cfg_star=True),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Callable[..., list[np.ndarray]]]:
    def load(spec: GraphSpec) -> Callable[..., list[np.ndarray]]:
        model = trace(spec, opset=20)
        seal(model)
        path: Path = tmp_path_factory.mktemp("graphs") / "main.onnx"
        ir.save(model, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda **feeds: session.run(None, feeds)

    return load


@pytest.fixture(scope="module")
def step_graph(run: Any) -> Callable[..., list[np.ndarray]]:
    return run(denoise_step())


def draw(*shape: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) + np.float32(mean)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("guided", GUIDED.values(), ids=GUIDED)
@pytest.mark.parametrize("shape", [(1, 1, 24), (2, 35, 16)])
def test_a_step_is_numpys(step_graph: Any, shape: tuple[int, ...], guided: StepGuidance, per_token: bool) -> None:
    tokens = shape[1] if per_token else 1
    weights = np.random.default_rng(3).standard_normal((6, tokens), dtype=np.float32)
    step = LinearStep(
        sample=weights[0], prediction=weights[1], noise=weights[2], anchor=weights[3],
        denoised_sample=weights[4], denoised_prediction=weights[5],
    )  # fmt: skip
    predictions = draw(len(guided.passes), *shape, seed=1, mean=0.3)
    sample, noise, anchor = (draw(*shape, seed=seed) for seed in (4, 5, 6))
    got = step_graph(
        predictions=predictions, guidance=guided.weights(), rescale=np.array([guided.rescaled], np.float32),
        sample=sample, noise=noise, anchor=anchor, coefficients=step.coefficients(tokens),
    )  # fmt: skip
    combined = guided.combine(predictions.reshape(-1, *shape[1:]))
    for ours, expected in zip(got, step.apply(sample, combined, noise, anchor), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-5)


def test_predictions_that_are_all_zero_stay_finite(step_graph: Any) -> None:
    """What a first preparation of latents is given: nothing was predicted yet."""
    zeros = np.zeros((1, 3, 4), np.float32)
    step = LinearStep(prediction=1.0)
    latents, _ = step_graph(
        predictions=np.zeros((2, *zeros.shape), np.float32), guidance=StepGuidance(scale=3, cfg_star=True).weights(),
        rescale=np.zeros(1, np.float32), sample=zeros + 1, noise=zeros, anchor=zeros,
        coefficients=step.coefficients(),
    )  # fmt: skip
    np.testing.assert_array_equal(latents, zeros + 1)


@pytest.mark.parametrize("noise", [False, True])
def test_tokens_become_the_decoders_latents(run: Any, noise: bool) -> None:
    graph = run(decoder_latents(channels=6, order=(0, 4, 1, 2, 3), noise=noise))
    tokens, mean, std = draw(3, 2, 4, 5, 6), draw(6, seed=1), np.abs(draw(6, seed=2)) + 1
    expected = denormalize(tokens.transpose(0, 4, 1, 2, 3), mean, std, 1.25)
    feeds = {"latents": tokens, "scale": std / np.float32(1.25), "shift": mean}
    if noise:
        feeds |= {"noise": draw(*expected.shape, seed=3), "noise_scale": np.array([0, 0.025, 1], np.float32)}
        expected = mix_decode_noise(expected, feeds["noise"], feeds["noise_scale"])
    np.testing.assert_allclose(graph(**feeds)[0], expected, rtol=1e-6, atol=1e-6)


def test_latents_of_frames_become_the_decoders(run: Any) -> None:
    graph = run(decoder_latents(channels=6, order=(0, 2, 1, 3, 4), noise=False))
    latents = draw(2, 3, 6, 4, 5)
    (got,) = graph(latents=latents, scale=np.full(6, 1 / 0.7, np.float32), shift=np.zeros(6, np.float32))
    np.testing.assert_array_equal(got, latents.transpose(0, 2, 1, 3, 4) * np.float32(1 / 0.7))


def test_frames_are_numpys_to_the_byte(run: Any) -> None:
    """Values where rounding decides too: halves between bytes, and a bit to either side."""
    halves = ((np.arange(255) + 0.5) / 127.5 - 1).astype(np.float32)
    edges = np.concatenate([np.nextafter(halves, -2), halves, np.nextafter(halves, 2)])
    video = np.concatenate([edges, np.array([-1.5, -1, 1, 1.5, np.inf, -np.inf], np.float32), draw(3 * 13)])
    video = np.resize(video, (2, 3, 5, 4, 7 * 3)).astype(np.float32)
    assert set(halves) <= set(video.reshape(-1).tolist())
    (got,) = run(uint8_frames())(video=video)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, to_uint8(to_unit_range(video)))
