"""Networks for trial runs: a bundle's own pipeline with some components from another bundle, or probed.

Trial runs are the runtime's: calibration and the quality gate see what `generate` does, through the sessions that it
uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from telecine.backends.base import Buffer, NetworkFacts, Session
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.errors import BackendError
from telecine.manifest import Graph
from telecine.models import LoadedModels
from telecine_export.precision.emulate import emulate
from telecine_export.precision.policy import DTYPES, half_of

CPU = ("CPUExecutionProvider",)
# (component, role, names and values of the extra outputs) of one call.
Seen = Callable[[str, str, Mapping[str, Buffer]], None]


def open_graph(bundle: Bundle, component: str, role: str = "main", *, as_gpu: bool = False) -> Session:
    """A graph of a bundle on ONNX Runtime's CPU provider; what it cannot run (bf16) is emulated.

    `as_gpu` emulates every lower precision: each result is rounded as a GPU's kernels do.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    graph, precision = bundle.graph(component, role), bundle.component(component).precision
    path = bundle.path(graph.file)
    if precision == "bf16" or (as_gpu and precision != "fp32"):
        model = ir.load(path)
        emulate(model, DTYPES[half_of(precision)])
        return MadeSession(graph, model, str(path.parent))
    return OnnxRuntimeSession.load(graph, path, device="cpu", options=OnnxRuntimeOptions(), precision=precision)


class MadeSession(Session):
    """A model made in memory over a bundle's weights; `seen` gets the outputs that the graph's contract has not."""

    def __init__(self, graph: Graph, model: ir.Model, weights: str, seen: Callable[..., None] | None = None) -> None:
        super().__init__(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
        proto: onnx.ModelProto = ir.to_proto(model)
        self._session: Any = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=CPU)
        self._names = [output.name for output in proto.graph.output]
        self._graph, self._seen = graph, seen
        self._bound: dict[str, Buffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        self.check_open()
        self.check_buffer(name, buffer)
        self._bound[name] = buffer

    def unbind(self) -> None:
        self._bound.clear()

    def enqueue(self, stream: int = 0) -> None:
        self.check_open()
        self.check_bound(self._bound)
        feeds = {name: self._bound[name] for name in self.inputs}
        made = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        for name in self.outputs:
            np.copyto(self._bound[name], made.pop(name))
        if self._seen is not None:
            self._seen(made)

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        raise BackendError(
            "other weights for a trial run", expected="the bundle's own", fix="Load them into a pipeline of the bundle."
        )

    def clone(self) -> MadeSession:
        other = object.__new__(MadeSession)
        Session.__init__(other, self._graph)
        other._session, other._names, other._graph, other._seen = self._session, self._names, self._graph, self._seen
        other._bound = {}
        return other

    def close(self) -> None:
        self._session = None
        self._bound.clear()

    @property
    def closed(self) -> bool:
        return self._session is None


class TrialModels(LoadedModels):
    """A reference bundle's networks, but for `candidates` of another bundle and sessions that are given."""

    def __init__(
        self,
        reference: Bundle,
        *,
        candidate: Bundle | None = None,
        candidates: Collection[str] = (),
        as_gpu: bool = False,
        sessions: Mapping[tuple[str, str], Session] | None = None,
    ) -> None:
        others = dict.fromkeys(candidates, candidate) if candidate is not None else {}
        # Every prompt is encoded: calibration sees what the text encoder makes.
        super().__init__(reference, _TrialBackend(reference, others, sessions or {}, as_gpu), prompt_cache=0)


class _TrialBackend:
    """Loads each component from its own bundle (`others`, else the reference), as `open_graph` does."""

    def __init__(
        self,
        reference: Bundle,
        others: Mapping[str, Bundle],
        sessions: Mapping[tuple[str, str], Session],
        as_gpu: bool,
    ) -> None:
        self._reference, self._others, self._given, self._as_gpu = reference, others, sessions, as_gpu

    def load(self, component: str, role: str, weights: int | None = None) -> Session:
        if (component, role) in self._given:
            return self._given[component, role]
        return open_graph(self._others.get(component, self._reference), component, role, as_gpu=self._as_gpu)

    def facts(self, component: str, role: str) -> NetworkFacts:
        size = self._others.get(component, self._reference).component(component).weights.size
        return NetworkFacts(weights=size, replaced=size, batch_pays=True)

    def device_bytes(self) -> None:
        return None

    def limits(self, component: str, role: str) -> None:
        return None
