"""What runs in Triton's Python backend: requests to videos, some at a time, over shared weights."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.errors import Cancelled, RequestError, TelecineError
from telecine.pipeline import Pipeline, load
from telecine.serving.triton.inputs import parameters

LOG = logging.getLogger(__name__)
OUTPUT_TYPES = ("uint8", "latent")

Array = npt.NDArray[Any]
# `triton_python_backend_utils` and its objects, which exist inside Triton alone and have no types.
Utils = Any
Request = Any
Sender = Any


class PipelineModel:
    """A pipeline and its clones, each of which makes one request's video at a time.

    `arguments` are those of the Python backend's `initialize`; the model's configuration holds in its parameters
    `backend`, `concurrency` (how many pipelines there are) and, where given, `threads`.

    Raises:
        BundleError, BackendError, EngineError: as `load`: the model is not ready, for that reason.
    """

    def __init__(self, utils: Utils, bundle: Path, arguments: Mapping[str, str]) -> None:
        self._utils = utils
        given = json.loads(arguments["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in given.items()}
        gpu = arguments["model_instance_kind"] == "GPU"
        first = load(
            bundle,
            backend=settings["backend"],
            device=f"cuda:{arguments['model_instance_device_id']}" if gpu else "cpu",
            options=OnnxRuntimeOptions(threads=int(settings["threads"])) if "threads" in settings else None,
        )
        concurrency = int(settings["concurrency"])
        self._pipelines = [first, *(first.clone() for _ in range(concurrency - 1))]
        self._free: queue.SimpleQueue[Pipeline] = queue.SimpleQueue()
        for pipeline in self._pipelines[1:]:
            self._free.put(pipeline)
        self._next = first
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="telecine")
        self._closing = threading.Event()

    def execute(self, requests: Sequence[Request]) -> None:
        """Begin each request, and return when another one could begin: what has to wait stays in Triton's queue."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                # Here, as Triton may reuse the tensors when this has returned.
                asked = _parameters({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            except TelecineError as error:
                self._send_error(sender, error)
                continue
            self._workers.submit(self._run, self._next, sender, asked)
            self._next = self._free.get()

    def close(self) -> None:
        """Stop what runs at its next step, and free the networks."""
        self._closing.set()
        self._workers.shutdown()
        for pipeline in self._pipelines:
            pipeline.close()

    def _run(self, pipeline: Pipeline, sender: Sender, asked: dict[str, Any]) -> None:
        """Make one video; whatever happens, the last response is sent."""
        try:
            self._send(sender, self._video(pipeline, sender, asked), last=True)
        except TelecineError as error:
            self._send_error(sender, error)
        except Exception as error:  # a client whose request is not answered waits for ever
            LOG.exception("a request failed")
            self._send_error(sender, error)
        finally:
            self._free.put(pipeline)

    def _video(self, pipeline: Pipeline, sender: Sender, asked: dict[str, Any]) -> dict[str, Array]:
        """The outputs of the last response.

        Raises:
            TelecineError: as `Pipeline.generate`; `Cancelled` where the client has gone, or the model is unloaded.
        """

        def step(index: int, steps: int, sigma: float, latents: Array) -> bool:
            if self._stopped(sender):
                return False
            self._send(sender, {"step": np.array([index]), "steps": np.array([steps]), "sigma": np.array([sigma])})
            return True

        if asked["output_type"] == "latent":
            result = pipeline.generate(**asked, callback=step)
            assert result.latents is not None
            made = {"latents": result.latents.ravel(), "latents_shape": np.array(result.latents.shape)}
            if result.audio_latents is not None:
                made["audio_latents"] = result.audio_latents
            return made | _facts(result.seeds, result.frame_rate)
        with pipeline.stream(**asked, callback=step) as stream:
            frames, done = np.empty(stream.shape, np.uint8), 0
            for piece in stream:
                if self._stopped(sender):
                    raise Cancelled(
                        f"the run was stopped after {done} of {frames.shape[1]} frames were decoded",
                        expected="a client that waits for all",
                        fix="Ask again.",
                    )
                frames[:, done : done + piece.shape[1]] = piece
                done += piece.shape[1]
            video: dict[str, Array] = {"frames": frames} | _facts(stream.seeds, stream.frame_rate)
            if stream.audio is not None:
                video |= {"audio": stream.audio, "sample_rate": np.array([stream.sample_rate], np.int64)}
            return video

    def _stopped(self, sender: Sender) -> bool:
        return self._closing.is_set() or bool(sender.is_cancelled())

    def _send(self, sender: Sender, outputs: Mapping[str, Array], *, last: bool = False) -> None:
        tensors = [self._utils.Tensor(name, array) for name, array in outputs.items()]
        flags = self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(self._utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def _send_error(self, sender: Sender, error: Exception) -> None:
        kind = self._utils.TritonError
        codes = ((RequestError, kind.INVALID_ARG), (Cancelled, kind.CANCELLED), (Exception, kind.INTERNAL))
        code = next(code for cause, code in codes if isinstance(error, cause))
        response = self._utils.InferenceResponse(error=kind(str(error) or type(error).__name__, code))
        sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _parameters(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """
    Raises:
        RequestError: a tensor is wrong, or floats are asked for.
    """
    asked = {"output_type": "uint8"} | parameters(tensors)
    if asked["output_type"] not in OUTPUT_TYPES:
        raise RequestError(
            f"output_type is {asked['output_type']!r}",
            expected=f"{' or '.join(OUTPUT_TYPES)}: the output `frames` is of bytes",
            fix="Leave it out for frames.",
        )
    return asked


def _facts(seeds: Sequence[int], frame_rate: float) -> dict[str, Array]:
    return {"seeds": np.array(seeds, np.int64), "frame_rate": np.array([frame_rate], np.float64)}
