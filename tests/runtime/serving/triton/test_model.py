"""What runs in the Python backend, with a double of the backend's module: what a real server does not show."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import triton_utils
from doubles.triton_utils import InferenceRequest, ResponseSender
from triton_requests import Tensors, ints, text

import telecine
from telecine.errors import BackendError
from telecine.pipeline import Pipeline
from telecine.serving.triton import model as module
from telecine.serving.triton.model import PipelineModel

PROMPT: Tensors = {
    "prompt": text("a red ball"), "height": ints(32), "width": ints(32), "num_frames": ints(9),
    "num_inference_steps": ints(4), "seed": ints(0),
}  # fmt: skip
# Decoded in four pieces.
TILES = {"tiling": text("diffusers"), "tile_frames": ints(16), "tile_frame_stride": ints(8), "num_frames": ints(33)}


def arguments(kind: str = "CPU", **parameters: str) -> dict[str, str]:
    """Of `initialize`."""
    given = {"backend": "auto", "concurrency": "1", "threads": "1"} | parameters
    config = {"parameters": {name: {"string_value": value} for name, value in given.items()}}
    return {"model_config": json.dumps(config), "model_instance_kind": kind, "model_instance_device_id": "1"}


@pytest.fixture
def make(tiny_bundle: Path) -> Iterator[Callable[..., PipelineModel]]:
    made: list[PipelineModel] = []

    def make(**parameters: str) -> PipelineModel:
        made.append(PipelineModel(triton_utils, tiny_bundle, arguments(**parameters)))
        return made[-1]

    yield make
    for model in made:
        model.close()


def test_a_client_that_has_gone_stops_the_run_at_that_step(make: Callable[..., PipelineModel]) -> None:
    request = InferenceRequest(PROMPT, ResponseSender(cancel_after=2))
    make().execute([request])
    error = request.sender.last.error
    assert error.code == triton_utils.TritonError.CANCELLED
    assert "stopped the run after step 3 of 4" in error.text  # the first that found it gone: two were told of
    assert [int(response.outputs["step"][0]) for response in request.sender.responses[:-1]] == [0, 1]


def test_a_client_that_has_gone_stops_the_decoding(make: Callable[..., PipelineModel]) -> None:
    request = InferenceRequest(PROMPT | TILES, ResponseSender(cancel_after=4))
    make().execute([request])
    error = request.sender.last.error
    assert error.code == triton_utils.TritonError.CANCELLED
    assert "0 of 33 frames were decoded" in error.text


def test_frames_in_pieces_are_those_of_the_whole(make: Callable[..., PipelineModel], tiny_bundle: Path) -> None:
    request = InferenceRequest(PROMPT | TILES)
    make().execute([request])
    asked: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 33, "num_inference_steps": 4, "seed": 0}
    asked |= {"tiling": "diffusers", "tile_frames": 16, "tile_frame_stride": 8, "output_type": "uint8"}
    with telecine.load(tiny_bundle, device="cpu", options=telecine.OnnxRuntimeOptions(threads=1)) as pipe:
        whole = pipe.generate("a red ball", **asked)
    np.testing.assert_array_equal(request.sender.last.outputs["frames"], whole.frames)


def test_no_more_run_at_a_time_than_there_are_pipelines(
    make: Callable[..., PipelineModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no fewer, where so many wait."""
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2, timeout=60)  # broken, were they one after the other

    def stream(self: Pipeline, **asked: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1
        raise telecine.RequestError("enough", expected="it", fix="Go.")

    model = make(concurrency="2")
    monkeypatch.setattr(Pipeline, "stream", stream)
    requests = [InferenceRequest(PROMPT) for _ in range(6)]
    model.execute(requests)
    assert [request.sender.last.error.text for request in requests] == ["enough; expected it. Go."] * 6
    assert most == 2


def test_a_fault_that_nobody_thought_of_is_answered_and_logged(
    make: Callable[..., PipelineModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, request, next_request = make(), InferenceRequest(PROMPT), InferenceRequest(PROMPT)
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "stream", lambda *_, **__: [][1])
        model.execute([request])
    assert request.sender.last.error.text == "list index out of range"
    assert request.sender.last.error.code == triton_utils.TritonError.INTERNAL
    assert "a request failed" in caplog.text
    model.execute([next_request])
    assert next_request.sender.last.outputs["frames"].shape == (1, 9, 32, 32, 3)


def test_unloading_stops_what_runs(make: Callable[..., PipelineModel]) -> None:
    model, request = make(concurrency="2"), InferenceRequest(PROMPT | {"num_inference_steps": ints(100_000)})
    model.execute([request])
    model.close()
    assert request.sender.last.error.code == triton_utils.TritonError.CANCELLED


def test_wrong_requests_say_that_they_are(make: Callable[..., PipelineModel]) -> None:
    """Of those in one call, one is wrong before it runs, one when it runs, and one is right."""
    requests = [InferenceRequest(PROMPT | changes) for changes in ({"output_type": text("np")}, {"seed": ints()}, {})]
    make().execute(requests)
    first, second, third = (request.sender.last for request in requests)
    assert first.error.text.startswith("output_type is 'np'; expected uint8 or latent")
    assert second.error.text.startswith("0 seeds; expected")
    assert {first.error.code, second.error.code} == {triton_utils.TritonError.INVALID_ARG}
    assert third.error is None


def test_instances_run_on_triton_s_devices(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: dict[str, Any] = {}

    def load(bundle: Path, **options: Any) -> Any:
        loaded.update(options)
        raise BackendError("no GPU", expected="one", fix="Add it.")

    monkeypatch.setattr(module, "load", load)
    for kind, device in (("GPU", "cuda:1"), ("CPU", "cpu")):
        with pytest.raises(BackendError):
            PipelineModel(triton_utils, tiny_bundle, arguments(kind, backend="onnxruntime"))
        assert (loaded["device"], loaded["backend"]) == (device, "onnxruntime")
        assert loaded["options"].threads == 1
