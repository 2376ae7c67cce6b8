"""A backend whose networks do not run: they are written down as steps of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from telecine.axes import Shape
from telecine.backends.base import Buffer as HostArray
from telecine.backends.base import NetworkFacts, Session
from telecine.backends.tensorrt.profiles import largest_sizes
from telecine.bundle import Bundle
from telecine.engine import Sidecar
from telecine.errors import BackendError, RequestError
from telecine.manifest import Graph
from telecine.models import LoadedModels
from telecine.plan.program import View
from telecine.plan.recorded import Recorded
from telecine.plan.recorder import Recorder
from telecine.tokenizer import TokenizedText, Tokenizer


class LaterPrompt(str):
    """A prompt that the host will have: its tokens are asked of it before the first step."""


class RecordingSession(Session):
    """A graph of which runs are recorded."""

    def __init__(self, component: str, role: str, graph: Graph, recorder: Recorder) -> None:
        super().__init__(graph)
        self._component, self._role, self._recorder = component, role, recorder
        self._bound: dict[str, Recorded | HostArray] = {}
        self._closed = False

    def empty(self, shape: Shape, dtype: Any) -> Any:
        return self._recorder.empty(shape, dtype)

    def bind(self, name: str, buffer: Any) -> None:
        if isinstance(buffer, Recorded):
            wanted = self.check_name(name).dtype
            if buffer.dtype != np.dtype(wanted) or not buffer.view.contiguous:
                raise BackendError(
                    f"{name} is {buffer.dtype}, {'in one piece' if buffer.view.contiguous else 'scattered'}",
                    expected=f"{wanted}, in one piece",
                    fix="Copy it first.",
                )
            buffer.buffer.name = buffer.buffer.name or f"{self._component}.{name}"
        else:
            self.check_buffer(name, buffer)
        self._bound[name] = buffer

    def unbind(self) -> None:
        self._bound.clear()

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        self.check_bound(self._bound)
        inputs = {name: self._view(name) for name in self.inputs}
        self._recorder.run(self._component, self._role, inputs, {name: self._view(name) for name in self.outputs})

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        shapes = self.output_shapes({name: array.shape for name, array in feeds.items()})
        made = {name: self.empty(shape, self.outputs[name].dtype) for name, shape in shapes.items()}
        try:
            for name, array in {**feeds, **made}.items():
                scattered = isinstance(array, Recorded) and not array.view.contiguous
                whole = array.copy() if scattered else array
                self.bind(name, whole if isinstance(whole, Recorded) else np.ascontiguousarray(whole))
            self.enqueue()
        finally:
            self.unbind()
        return made

    def _view(self, name: str) -> View:
        array = self._bound[name]
        if isinstance(array, Recorded):
            return array.view
        return self._recorder.constant(array, name=f"{self._component}.{name}")

    def clone(self) -> NoReturn:
        raise _recording("clones")

    def replace(self, weights: Mapping[str, HostArray]) -> NoReturn:
        raise _recording("other weights")

    def close(self) -> None:
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed


class RecordingBackend:
    """Gives every network of a bundle as a `RecordingSession`; with engines, within what they take."""

    def __init__(self, bundle: Bundle, recorder: Recorder, engines: Mapping[tuple[str, str], Sidecar]) -> None:
        self._bundle, self._recorder, self._engines = bundle, recorder, engines

    def load(self, component: str, role: str, weights: int | None = None) -> RecordingSession:
        return RecordingSession(component, role, self._bundle.graph(component, role), self._recorder)

    def limits(self, component: str, role: str) -> Mapping[str, int] | None:
        sidecar = self._engines.get((component, role))
        return largest_sizes(sidecar) if sidecar else None

    def facts(self, component: str, role: str) -> NetworkFacts:
        """Those of a host that loads the bundle's own weights once."""
        size = self._bundle.component(component).weights.size
        return NetworkFacts(weights=size, replaced=size, batch_pays=True)

    def device_bytes(self) -> None:
        """Nothing runs."""


class RecordingModels(LoadedModels):
    """A bundle's networks as they are recorded, and a tokenizer that asks the host for the tokens of later prompts."""

    def __init__(self, bundle: Bundle, backend: RecordingBackend, recorder: Recorder) -> None:
        super().__init__(bundle, backend, prompt_cache=0)  # every prompt is encoded, and recorded
        self._recorder = recorder

    @property
    def tokenizer(self) -> Any:
        return _LaterTokens(super().tokenizer, self._recorder)


class _LaterTokens:
    """`Tokenizer`, but that a `LaterPrompt` comes to arrays which the host fills."""

    def __init__(self, tokenizer: Tokenizer, recorder: Recorder) -> None:
        self._tokenizer, self._recorder = tokenizer, recorder

    def encode(self, prompts: Sequence[str], *, max_sequence_length: int) -> TokenizedText:
        if not isinstance(prompts[0], LaterPrompt):
            return self._tokenizer.encode(prompts, max_sequence_length=max_sequence_length)
        self._tokenizer.encode(prompts, max_sequence_length=max_sequence_length)  # refuses what it would refuse
        ids, mask = (
            self._recorder.empty((len(prompts), max_sequence_length), np.int64, name=name, asked=True)
            for name in ("input_ids", "attention_mask")
        )
        return TokenizedText(input_ids=ids, attention_mask=mask, truncated=(None,) * len(prompts))  # type: ignore[arg-type]


def _recording(what: str) -> RequestError:
    return RequestError(
        f"{what} of a network that is recorded", expected="the bundle's own", fix="Put them into the bundle first."
    )
