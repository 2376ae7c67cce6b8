"""A process with NVIDIA's tritonclient, which wants other versions than the tests' environment has.

Reads pickled calls, (function, arguments), from stdin, and writes pickled answers to stdout. Protocol 4: later ones
name parts of NumPy 2 that NumPy 1.26 lacks.
"""

from __future__ import annotations

import pickle
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import telecine

TIMEOUT_S = 120.0


class Stream:
    """A stream to the server, for one request at a time: the events are dicts of outputs, or error texts."""

    def __init__(self, url: str, model: str) -> None:
        self.client, self.model = InferenceServerClient(url), model
        self.events: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(lambda result, error: self.events.put((result, error)))

    def ask(self, tensors: dict[str, Any]) -> None:
        inputs = []
        for name, array in tensors.items():
            entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            entry.set_data_from_numpy(array)
            inputs.append(entry)
        self.client.async_stream_infer(self.model, inputs, enable_empty_final_response=True)

    def next(self) -> tuple[Any, bool]:
        """An event, and whether it is the last."""
        result, error = self.events.get(timeout=TIMEOUT_S)
        if error is not None:
            return error.message(), True
        response = result.get_response()
        outputs = {output.name: result.as_numpy(output.name).copy() for output in response.outputs}
        return outputs, response.parameters["triton_final_response"].bool_param

    def all(self, tensors: dict[str, Any]) -> list[Any]:
        self.ask(tensors)
        events, last = [], False
        while not last:
            event, last = self.next()
            events.append(event)
        return events

    def close(self, *, cancel: bool = False) -> None:
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


def infer(url: str, model: str, requests: list[dict[str, Any]], clients: int) -> list[list[Any]]:
    """The events of each request, sent by so many clients at once, each of which asks as soon as it is answered."""
    waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    for job in enumerate(requests):
        waiting.put(job)
    answers: list[list[Any]] = [[] for _ in requests]

    def work() -> None:
        stream = Stream(url, model)
        try:
            while True:
                index, tensors = waiting.get_nowait()
                answers[index] = stream.all(tensors)
        except queue.Empty:
            return
        finally:
            stream.close()

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()
    return answers


def infer_and_cancel(
    url: str, model: str, tensors: dict[str, Any], after: int, meanwhile: list[dict[str, Any]]
) -> tuple[list[Any], list[list[Any]]]:
    """The events until the client goes away, that many; and those of other requests, which it waits for before."""
    stream = Stream(url, model)
    stream.ask(tensors)
    events = [stream.next()[0] for _ in range(after)]
    others = infer(url, model, meanwhile, 1)
    stream.close(cancel=True)
    return events, others


def control(url: str, method: str, *arguments: Any) -> Any:
    """A method of the client, such as `is_model_ready` or `unload_model`; an error's text where it fails."""
    with InferenceServerClient(url) as client:
        try:
            return getattr(client, method)(*arguments)
        except InferenceServerException as error:
            return str(error)


def parse(text: str) -> dict[str, Any]:
    """A config.pbtxt as Triton's own message reads it, as JSON."""
    return json_format.MessageToDict(
        text_format.Parse(text, model_config_pb2.ModelConfig()), preserving_proto_field_name=True
    )


def library(bundle: str, requests: list[dict[str, Any]]) -> list[Any]:
    """What telecine itself makes of parameters of `generate` (`conditions` as dicts): frames, seeds and sound, if any.

    Here, as NumPy's trigonometry differs between its versions in the last bit, and the server has this one.
    """
    options = telecine.OnnxRuntimeOptions(threads=1)
    made = []
    with telecine.load(bundle, device="cpu", options=options) as pipe:
        for request in requests:
            conditions = [telecine.Condition(**each) for each in request.get("conditions", [])]
            result = pipe.generate(**{**request, "conditions": conditions or None}, output_type="uint8")
            made.append((result.frames, result.seeds, result.audio))
    return made


CALLS = {call.__name__: call for call in (infer, infer_and_cancel, control, parse, library)}

if __name__ == "__main__":
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        pickle.dump(CALLS[name](*arguments), sys.stdout.buffer, protocol=4)
        sys.stdout.buffer.flush()
