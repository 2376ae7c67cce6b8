"""A bundle's networks: loaded when first asked for, and once for all clones of a pipeline."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from telecine.backends.base import Session
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.errors import BundleError, RequestError
from telecine.families import FAMILIES
from telecine.families.base import Stage
from telecine.tokenizer import Tokenizer


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


class _Shared:
    """What the clones of a pipeline have between them: each network is loaded once, and lives while one holds it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokenizer: Tokenizer | None = None
        self.sessions: dict[tuple[str, str], weakref.WeakSet[Session]] = {}


class LoadedModels:
    """A bundle's networks on ONNX Runtime, loaded when first asked for and kept."""

    def __init__(
        self, bundle: Bundle, *, device: str, options: OnnxRuntimeOptions, shared: _Shared | None = None
    ) -> None:
        if bundle.manifest.family not in FAMILIES:
            raise BundleError(
                f"{bundle.root} holds a {bundle.manifest.family} model",
                expected=f"one of {', '.join(FAMILIES)}",
                fix="Upgrade telecine.",
            )
        self.bundle, self._device, self._options = bundle, device, options
        self._shared = shared or _Shared()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._stage: Stage = _untimed
        self._closed = False

    @property
    def host(self) -> Mapping[str, Any]:
        return self.bundle.manifest.host

    @property
    def tokenizer(self) -> Tokenizer:
        with self._shared.lock:
            if self._shared.tokenizer is None:
                self._shared.tokenizer = Tokenizer.load(self.bundle.path(self.bundle.manifest.tokenizer))
            return self._shared.tokenizer

    def session(self, component: str, role: str = "main") -> Session:
        key = (component, role)
        if key in self._sessions and not self._closed:
            return self._sessions[key]  # without waiting for a clone that loads something
        with self._shared.lock:  # two clones that load at once would each hold the weights
            self.check_open()
            if key not in self._sessions:
                family = self._shared.sessions.setdefault(key, weakref.WeakSet())
                relative = next((session for session in family if not session.closed), None)
                with self._stage("load"):
                    self._sessions[key] = relative.clone() if relative else self._load(component, role)
                family.add(self._sessions[key])
            return self._sessions[key]

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Within this, loading a network is `stage("load")`."""
        self._stage = stage
        try:
            yield
        finally:
            self._stage = _untimed

    def require(self, component: str) -> None:
        """
        Raises:
            BundleError: the bundle lacks the component.
        """
        self.bundle.component(component)

    def _load(self, component: str, role: str) -> Session:
        graph = self.bundle.graph(component, role)
        return OnnxRuntimeSession.load(graph, self.bundle.path(graph.file), device=self._device, options=self._options)

    def check_open(self) -> None:
        if self._closed:
            raise RequestError("this pipeline is closed", expected="an open one", fix="Load the bundle again.")

    def clone(self) -> LoadedModels:
        self.check_open()
        return LoadedModels(self.bundle, device=self._device, options=self._options, shared=self._shared)

    def close(self) -> None:
        with self._shared.lock:
            self._closed = True
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()
