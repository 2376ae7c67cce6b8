"""What `telecine build` writes, sessions run: both on one double of TensorRT, which runs graphs on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.bundle import Bundle
from telecine_engines.build import BuildRequest, build_engines
from telecine_engines.options import BuildOptions

pytest.importorskip("onnxruntime")

REQUEST: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"strip_plan": True}, {"weight_streaming": True}, {"version_compatible": True, "refit": True}],
    ids=lambda options: ",".join(options) or "plain",
)
def test_frames_are_onnx_runtimes(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], options: dict[str, bool]
) -> None:
    tensorrt()
    request = BuildRequest(
        bundle=Bundle.open(tiny_bundle),
        targets=("trt-sm89",),
        workloads=("64x96x9",),
        options=BuildOptions(**options),
        engines=tmp_path,
    )
    build_engines(request)
    with telecine.load(tiny_bundle, backend="onnxruntime") as pipe:
        expected = pipe.generate(**REQUEST).frames
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        np.testing.assert_array_equal(pipe.generate(**REQUEST).frames, expected)
