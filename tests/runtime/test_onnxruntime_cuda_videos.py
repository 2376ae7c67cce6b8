"""Whole videos on ONNX Runtime's CUDA provider, as far as a machine without a GPU can show it: through the doubles,
which run the graphs on the CPU provider, frames are those that it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble

import telecine
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.stream import Stream

pytest.importorskip("onnxruntime")

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3, "seed": 0,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip
# Of the steps' arithmetic, which is in another order on the device than in NumPy; networks have the same bits.
TOLERANCE = 2e-5
CHANGES: dict[str, dict[str, Any]] = {
    "wide": {"height": 32, "width": 160, "num_frames": 17},
    "batch-2": {"prompt": ["a red ball", "a blue cube"], "guidance_scale": 1.0},
    "stg": {"stg_scale": 1.0, "stg_blocks": [1], "guidance_rescale": 0.7},
}


@pytest.mark.parametrize("cuda_graphs", ["auto", True])
def test_frames_are_onnx_runtimes(
    tiny_bundle: Path, tiny_bundle_on_main_graphs: Path, onnxruntime_gpu: Callable[..., Any], cuda_graphs: Any
) -> None:
    """One size after another, and back again."""
    onnxruntime_gpu()
    with (
        telecine.load(tiny_bundle, backend="onnxruntime", device="cuda", cuda_graphs=cuda_graphs) as pipe,
        telecine.load(tiny_bundle_on_main_graphs, backend="onnxruntime", device="cpu") as reference,
    ):
        for name in (*CHANGES, "wide"):
            got, expected = (each.generate(**SMALL | CHANGES[name]) for each in (pipe, reference))
            np.testing.assert_allclose(got.frames, expected.frames, rtol=0, atol=TOLERANCE, err_msg=name)


def test_all_networks_work_on_the_callers_stream(tiny_bundle: Path, onnxruntime_gpu: Callable[..., Any]) -> None:
    onnxruntime_gpu()
    mine = Stream(Device.open("cuda"))
    with (
        telecine.load(tiny_bundle, backend="onnxruntime", device="cuda", stream=mine.handle) as pipe,
        pipe.clone() as clone,
    ):
        sessions = [each._models.session(name) for each in (pipe, clone) for name in ("transformer", "vae_decoder")]
        assert {session.stream for session in sessions} == {mine.handle}
    mine.close()


def test_what_a_run_took_of_the_gpu_is_told(tiny_bundle: Path, onnxruntime_gpu: Callable[..., Any]) -> None:
    onnxruntime_gpu()
    with telecine.load(tiny_bundle, backend="onnxruntime", device="cuda") as pipe:
        assert pipe.generate(**SMALL).memory.device > 0


def test_a_second_run_allocates_nothing(
    tiny_bundle: Path, onnxruntime_gpu: Callable[..., Any], gpu: CudaDouble
) -> None:
    onnxruntime_gpu()
    with telecine.load(tiny_bundle, backend="onnxruntime", device="cuda") as pipe:
        pipe.generate(**SMALL)
        gpu.calls.clear()
        pipe.generate(**SMALL)
        assert not {"cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost", "cudaDeviceSynchronize"} & set(
            gpu.calls
        )
