"""A GPU's share of a benchmark, on the doubles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan

from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.bench.device import DevicePeak, back_to_back
from telecine.bundle import Bundle
from telecine.errors import BackendError

FEEDS = {"input_ids": np.arange(8)[np.newaxis]}


def test_the_peak_is_the_most_that_was_given_out(gpu: CudaDouble) -> None:
    device = Device.open("cuda")
    with DeviceArray(device, (1000,), np.uint8, stream=0), DevicePeak("cuda") as peak:
        with DeviceArray(device, (5000,), np.uint8, stream=0):
            peak._sample()  # whether the thread came by or not
        with DeviceArray(device, (100,), np.uint8, stream=0):
            pass
    assert peak.peak == 5000


def test_calls_are_enqueued_one_behind_the_other(
    tiny_bundle: Path, tmp_path: Path, gpu: CudaDouble, tensorrt: Callable[..., Any]
) -> None:
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    write_plan(bundle, "text_encoder", engines=tmp_path)
    engines = TensorRtBackend(bundle, device="cuda", engines=tmp_path, cuda_graphs=False)
    gpu.elapsed = 30.0
    with engines.load("text_encoder", "main") as session:
        told = back_to_back(session, FEEDS, device=Device.open("cuda"), calls=3, repeats=2)
    assert told == {"median": 0.01, "low": 0.01, "high": 0.01, "samples": (0.01, 0.01)}
    first, last = (place for place, name in enumerate(gpu.calls) if name == "cudaEventElapsedTime")
    between = gpu.calls[first + 1 : last]
    assert between.count("cudaDeviceSynchronize") == 1
    assert "cudaMemcpyAsync" not in between


def test_a_session_on_the_host_has_none(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.graph("text_encoder")
    options = OnnxRuntimeOptions()
    with (
        OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=options) as session,
        pytest.raises(BackendError, match="a session on the host; expected one on a GPU"),
    ):
        back_to_back(session, FEEDS, device=None)  # type: ignore[arg-type]
