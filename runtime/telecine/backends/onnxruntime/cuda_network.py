"""A graph in ONNX Runtime on a GPU, and the stream that its work runs on."""

from __future__ import annotations

import io
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

from telecine.backends.base import Buffer
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.stream import Stream
from telecine.backends.onnxruntime.library import load_onnxruntime
from telecine.backends.onnxruntime.network import Loaded, Network
from telecine.backends.onnxruntime.options import OnnxRuntimeOptions
from telecine.backends.onnxruntime.providers import CPU, CUDA, cuda_options, with_options
from telecine.errors import BackendError

GRAPHS_KEPT = 8  # of a network: each keeps what it needs on the device for as long as the session of ONNX Runtime lives
# Operators that compute with whole tensors; others on the CPU work out shapes, which ONNX Runtime wants there.
HEAVY = ("Attention", "MultiHeadAttention", "MatMul", "Gemm", "Conv", "ConvTranspose", "RMSNormalization")
SKIPPED = -1  # of gpu_graph_id: this run is not captured
LOG = logging.getLogger(__name__)


class CudaNetwork(Network):
    """A network on a GPU, freed when the last of those who `hold` it has let go.

    ONNX Runtime takes a stream when a session is made (`user_compute_stream`), not with a run: so there is one for a
    session and its clones, and work that comes from other streams is ordered with it by events. `lock` is for runs:
    one at a time gives work to the stream.

    With `cuda_graphs` ONNX Runtime captures runs by the id that `graph_id` gives to shapes and addresses. It takes
    graphs that CUDA runs from end to end only; others are loaded without, with a warning.
    """

    def __init__(
        self, path: Path, options: OnnxRuntimeOptions, precision: str, names: Sequence[str], device: Device, *,
        stream: int | None = None, cuda_graphs: bool = False,
    ) -> None:  # fmt: skip
        """`stream` is the handle of the caller's; None makes one of its own."""
        self.device, self.lock = device, threading.Lock()
        self._holders = 0
        self._ids = itertools.count(1)
        self._graphs: dict[Hashable, int] = {}  # ids by shapes and addresses
        if cuda_graphs and names[0] != CUDA:
            raise BackendError(
                f"cuda_graphs=True on {names[0]}", expected=f"{CUDA} first", fix="Leave cuda_graphs or providers out."
            )
        _preload()
        self._own = Stream(device) if stream is None else None
        self.stream = self._own.handle if self._own is not None else int(stream or 0)
        load = partial(self._load_on, path, options, precision, names)
        try:
            try:
                load(cuda_graphs=cuda_graphs)
            except BackendError as error:
                if not cuda_graphs or "graph capture" not in error.got:
                    raise
                LOG.warning("no CUDA graphs of %s: %s", path.parent.name, error.got)
                load(cuda_graphs=False)
            self.inputs_on_host = _inputs_on_host(self.loaded)
            _warn_of_work_on_host(path.parent.name, self.loaded)
        except BackendError:
            self._close_stream()
            raise

    def _load_on(
        self, path: Path, options: OnnxRuntimeOptions, precision: str, names: Sequence[str], *, cuda_graphs: bool
    ) -> None:
        self._captures = cuda_graphs
        told = partial(
            cuda_options,
            options=options,
            device=self.device.index,
            stream=self.stream,
            cuda_graphs=cuda_graphs,
            precision=precision,
        )
        super().__init__(path, options, precision, [with_options(name, options, told(name)) for name in names])

    def graph_id(self, key: Hashable) -> int | None:
        """ONNX Runtime's `gpu_graph_id` for shapes and addresses; None where it captures nothing.

        What it copies from the host at a run would be that of the captured one for ever.
        """
        if not self._captures:
            return None
        if self.inputs_on_host or (key not in self._graphs and len(self._graphs) >= GRAPHS_KEPT):
            return SKIPPED
        return self._graphs.setdefault(key, next(self._ids))

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        with self.lock:
            super().replace(weights)
            self._graphs.clear()  # the new session has none

    def hold(self) -> CudaNetwork:
        with self.lock:
            self._holders += 1
        return self

    def let_go(self) -> None:
        with self.lock:
            self._holders -= 1
            if self._holders:
                return
        self.device.use()
        del self.loaded  # before its stream
        self._close_stream()

    def _close_stream(self) -> None:
        if self._own is not None:
            self._own.close()


def _inputs_on_host(loaded: Loaded) -> frozenset[str]:
    """Inputs that the graph reads on the host. ONNX Runtime would copy those of a GPU when they are bound, and only
    then."""
    session = loaded.session
    names = [node.name for node in session.get_inputs()]
    return frozenset(
        name for name, place in zip(names, session.get_input_memory_infos(), strict=True) if _on_host(place)
    )


def _warn_of_work_on_host(name: str, loaded: Loaded) -> None:
    """ONNX Runtime gives the CPU what it has no CUDA kernels for, and says nothing: each such node copies and waits.

    So 1.24 does with `Attention` of opset 23 (microsoft/onnxruntime, issue 28025; pull request 27542 brings kernels).
    """
    nodes = [node for part in _parts(loaded.session) if part.ep_name == CPU for node in part.get_nodes()]
    found = Counter(node.op_type for node in nodes if node.op_type in HEAVY)
    if found:
        LOG.warning(
            "ONNX Runtime runs parts of %s on the host, for want of CUDA kernels, and slowly: %s. Upgrade "
            "onnxruntime-gpu, or export with --opset 20.",
            name,
            ", ".join(f"{count} {operator}" for operator, count in sorted(found.items())),
        )


def _parts(session: Any) -> Sequence[Any]:
    """Which provider runs which nodes; nothing where this version does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    return tell() if tell else ()


def _on_host(place: Any) -> bool:
    return str(place.name) in ("Cpu", "CudaPinned")


@cache
def _preload() -> None:
    """Let ONNX Runtime find CUDA's libraries where pip's packages have put them; it prints what it misses."""
    said = io.StringIO()
    with redirect_stdout(said):
        load_onnxruntime().preload_dlls()
    if said.getvalue():
        LOG.info("%s", said.getvalue().strip())
