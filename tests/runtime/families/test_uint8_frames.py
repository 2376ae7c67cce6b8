"""Frames that leave the decoder as bytes, through the doubles: NumPy's, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.plans import write_plan

import telecine
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle

pytest.importorskip("onnxruntime")

REQUEST: dict[str, Any] = {
    "prompt": ["a red ball", "a blue cube"], "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2,
    "seed": [0, 5], "decode_timestep": 0.05, "decode_noise_scale": 0.025, "output_type": "uint8",
}  # fmt: skip
DENOISING = ("denoise_step", "decoder_latents")  # on the host, so that decoders get the same bits


def write_plans(bundle: Path, engines: Path, **sizes: Any) -> None:
    opened = Bundle.open(bundle)
    for component, part in opened.manifest.components.items():
        for role in part.graphs:
            if component not in DENOISING:
                write_plan(opened, component, role, engines=engines, profiles=(sizes.get(component, {}),))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the bytes that a device made."""
    seen: list[tuple[int, ...]] = []
    bind = TensorRtSession.bind

    def watched(self: TensorRtSession, name: str, buffer: Any) -> None:
        if name == "frames":
            seen.append(buffer.shape)
        bind(self, name, buffer)

    monkeypatch.setattr(TensorRtSession, "bind", watched)
    return seen


@pytest.mark.parametrize("at_once", [1, 2])
def test_whole_videos(
    at_once: int, noisy_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], made: list[tuple[int, ...]]
) -> None:
    tensorrt()
    write_plans(noisy_bundle, tmp_path, vae_decoder={"batch": (1, 1, at_once)})
    with telecine.load(noisy_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        got, floats = pipe.generate(**REQUEST).frames, pipe.generate(**REQUEST | {"output_type": "np"}).frames
    assert made == [(at_once, 9, 64, 96, 3)] * (2 // at_once)
    np.testing.assert_array_equal(got, np.rint(floats * np.float32(255)))


def test_what_is_blended_is_rounded_on_the_host(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], made: list[tuple[int, ...]]
) -> None:
    tensorrt()
    write_plans(tiny_bundle, tmp_path)
    request = REQUEST | {"width": 256, "tile_size": 224}
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        assert pipe.generate(**request).frames.shape == (2, 9, 64, 256, 3)
    assert made == []


def test_chunks_of_cogvideox(
    cogvideox: Callable[..., Any], tmp_path: Path, tensorrt: Callable[..., Any], made: list[tuple[int, ...]]
) -> None:
    _, bundle = cogvideox("5b")  # first: to make it, diffusers looks for TensorRT
    tensorrt()
    request = {"prompt": "a red ball", "height": 48, "width": 80, "num_frames": 17, "num_inference_steps": 1, "seed": 0}
    write_plans(bundle, tmp_path)
    with telecine.load(bundle, backend="tensorrt", engines=tmp_path) as pipe:
        got = pipe.generate(**request, output_type="uint8").frames
        floats = pipe.generate(**request).frames
    assert made == [(1, 9, 48, 80, 3), (1, 8, 48, 80, 3)]
    np.testing.assert_array_equal(got, np.rint(floats * np.float32(255)))
