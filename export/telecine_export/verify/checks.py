"""What `verify` runs: graphs and whole runs of a bundle, with their inputs recorded, next to torch's modules."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers.utils.logging as diffusers_logging
import numpy as np
import numpy.typing as npt
import torch
import transformers.utils.logging as transformers_logging
from safetensors import SafetensorError
from torch import Tensor, nn

from telecine.backends.base import Buffer, Session
from telecine.backends.choice import OnnxRuntimeBackend
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.bundle import Bundle
from telecine.errors import BackendError, SourceError
from telecine.manifest import Graph
from telecine.models import LoadedModels
from telecine_export.families.weightless import WEIGHTLESS
from telecine_export.precision.trial_models import open_graph
from telecine_export.source import Source
from telecine_export.verify.comparison import Pair

Array = npt.NDArray[Any]
Call = dict[str, Array]
# Stage → case → values: what one side of a whole run computed.
Record = dict[str, dict[str, Array]]
LOWEST = ("fp8", "bf16", "fp16", "fp32")
# Of every `from_pretrained`: what is on disk, and never a pickle.
FP32: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyChecks:
    """The stages of a family, in the order in which a divergence would spread.

    `components`: each compares one part of the bundle with torch's. `run_stages`: what a whole run is compared by;
    `bundle_run` and `torch_run` make the run and fill a record of them, `bundle_run` as far as it comes; `run_parts`
    has the components that a stage's values come through, in those where any does. `optional` components are verified
    in bundles that have them, and so are graphs without weights: older bundles have none.
    """

    components: Mapping[str, Callable[[Bundle, Source], list[Pair]]]
    run_stages: Sequence[str]
    run_parts: Mapping[str, Sequence[str]]
    bundle_run: Callable[[BundleModels, Source, Record], None]
    torch_run: Callable[[Source, Record], None]
    optional: Collection[str] = ()

    def stages(self, bundle: Bundle) -> list[str]:
        absent = {*self.optional, *WEIGHTLESS} - set(bundle.manifest.components)
        return [name for name in (*self.components, *self.run_stages) if name not in absent]

    def precision(self, bundle: Bundle, stage: str) -> str:
        """The lowest precision that a stage's values come through."""
        components = bundle.manifest.components
        parts = self.run_parts.get(stage, (stage,))
        return min(
            (components[part].precision for part in parts if part in components), key=LOWEST.index, default="fp32"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One call of a graph: its feeds by input name, and what torch's module needs besides."""

    name: str
    feeds: Mapping[str, Array]
    extra: Mapping[str, Any] = field(default_factory=dict)


def compare_graph(
    bundle: Bundle,
    component: str,
    cases: Sequence[Case],
    *,
    load: Callable[[], nn.Module],
    reference: Callable[[Any, Case], Tensor | Sequence[Tensor]],
    widen: Callable[[Array], Array] = lambda output: output,
) -> list[Pair]:
    """Run a component's main graph on every case, then torch's module: only one of them is in memory at a time.

    Of a graph with several outputs `reference` gives as many, in their order, and each is a pair. `widen` makes the
    graph's output what the module's is, where the contract leaves out what repeats.

    Raises:
        BackendError: the graph cannot be loaded or refuses a case.
        SourceError: torch's module cannot be loaded.
    """
    got = []
    with open_session(bundle, component) as session:
        names = list(session.outputs)
        for case in cases:
            with _named(case.name):
                made = session.run(case.feeds)
                got.append([widen(made[name]) for name in names])
    module = load()
    with torch.inference_mode():
        made_by_torch = [reference(module, case) for case in cases]
        expected = [
            [each.float().numpy() for each in ([made] if isinstance(made, Tensor) else made)] for made in made_by_torch
        ]
    del module
    gc.collect()  # modules hold reference cycles; the next component needs the memory
    return [
        Pair(
            case=case.name if len(names) == 1 else f"{case.name}: {name}",
            shapes={given: feed.shape for given, feed in case.feeds.items()},
            got=ours,
            expected=theirs,
        )
        for case, outputs, references in zip(cases, got, expected, strict=True)
        for name, ours, theirs in zip(names, outputs, references, strict=True)
    ]


@contextlib.contextmanager
def _named(case: str) -> Iterator[None]:
    """Say at which of a stage's cases a graph failed."""
    try:
        yield
    except BackendError as error:
        raise BackendError(f"{case}: {error.got}", expected=error.expected, fix=error.fix) from error


def open_session(bundle: Bundle, component: str, role: str = "main") -> Session:
    """A graph of the bundle on ONNX Runtime's CPU provider, which computes fp32 as fp32; bf16 is emulated there."""
    bundle.require_weights(component)
    return open_graph(bundle, component, role)


class RecordingSession(Session):
    """A session that keeps a copy of what every call is fed, before the call."""

    def __init__(self, graph: Graph, session: Session, calls: list[Call]) -> None:
        super().__init__(graph)
        self._graph, self._session, self._calls = graph, session, calls
        self._bound: dict[str, Buffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        self._session.bind(name, buffer)
        if name in self.inputs:
            self._bound[name] = buffer

    def unbind(self) -> None:
        self._session.unbind()
        self._bound.clear()

    def enqueue(self, stream: int = 0) -> None:
        self._calls.append({name: buffer.copy() for name, buffer in self._bound.items()})
        self._session.enqueue(stream)

    def clone(self) -> RecordingSession:
        return RecordingSession(self._graph, self._session.clone(), self._calls)

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        self._session.replace(weights)

    def close(self) -> None:
        self._session.close()

    @property
    def closed(self) -> bool:
        return self._session.closed


class BundleModels(LoadedModels):
    """A bundle's networks for a family's pipeline, recorded.

    `calls[component]` holds what each call was fed: a run is observed at the graphs' boundaries, so that the host math
    is the runtime's own, untouched.
    """

    def __init__(self, bundle: Bundle) -> None:
        backend = OnnxRuntimeBackend(bundle, device="cpu", options=OnnxRuntimeOptions())
        super().__init__(bundle, backend, prompt_cache=0)  # every prompt is encoded, and seen
        self.calls: dict[str, list[Call]] = {name: [] for name in bundle.manifest.components}
        self._recording: dict[tuple[str, str], RecordingSession] = {}

    def session(self, component: str, role: str = "main") -> Session:
        if (component, role) not in self._recording:
            session = open_session(self.bundle, component, role)
            graph = self.bundle.graph(component, role)
            self._recording[component, role] = RecordingSession(graph, session, self.calls[component])
        return self._recording[component, role]

    def helper(self, component: str) -> None:
        """None: verification runs on the host."""

    def close(self) -> None:
        for session in self._recording.values():
            session.close()
        self._recording.clear()
        super().close()


def record_calls(module: nn.Module, names: Sequence[str]) -> list[Call]:
    """What a torch module is fed from now on, by argument name: the counterpart of `BundleModels.calls`."""
    calls: list[Call] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = dict(zip(names, arguments, strict=False)) | named
        calls.append({name: to_numpy(given[name]) for name in names if given.get(name) is not None})

    module.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def to_numpy(tensor: Tensor) -> Array:
    """A float32 copy."""
    return np.array(tensor.detach().float().numpy())


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """diffusers' and transformers' many ways to say that a checkpoint cannot be loaded, as SourceError."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise SourceError(
            f"torch cannot load {what}: {error}",
            expected="a checkpoint that diffusers loads",
            fix="Download it again, or update diffusers and transformers.",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, hints or warnings of diffusers and transformers; what they print goes to stderr."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in libraries:
        library.set_verbosity(logging.ERROR)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
