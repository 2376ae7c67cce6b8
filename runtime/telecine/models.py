"""A bundle's networks: loaded when first asked for, and once for all clones of a pipeline."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from telecine.backends.base import Session
from telecine.backends.choice import Backend
from telecine.bundle import Bundle
from telecine.errors import BundleError, EngineError, RequestError, TelecineError
from telecine.families import FAMILIES
from telecine.families.base import Stage
from telecine.tokenizer import Tokenizer
from telecine.weight_changes import WeightChanges

LOG = logging.getLogger(__name__)


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


class _Shared:
    """What the clones of a pipeline have between them: each network is loaded once, and lives while one holds it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokenizer: Tokenizer | None = None
        self.sessions: dict[tuple[str, str], weakref.WeakSet[Session]] = {}
        self.usage = threading.Lock()  # held while the weights change, and for a moment where a request begins or ends
        self.requests = 0
        self.changes = WeightChanges()
        self.limits: dict[str, Mapping[str, int] | None] = {}  # by component

    def live(self, component: str) -> Iterator[tuple[str, Session]]:
        """One session by role of each of a component's networks that are loaded."""
        for (name, role), family in self.sessions.items():
            session = next((session for session in family if not session.closed), None)
            if name == component and session is not None:
                yield role, session


class LoadedModels:
    """A bundle's networks on a backend, loaded when first asked for and kept."""

    def __init__(self, bundle: Bundle, backend: Backend, *, shared: _Shared | None = None) -> None:
        if bundle.manifest.family not in FAMILIES:
            raise BundleError(
                f"{bundle.root} holds a {bundle.manifest.family} model",
                expected=f"one of {', '.join(FAMILIES)}",
                fix="Upgrade telecine.",
            )
        self.bundle, self._backend = bundle, backend
        self._shared = shared or _Shared()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._lacking: set[str] = set()  # graphs without an engine, which NumPy stands for
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
                    self._sessions[key] = relative.clone() if relative else self._load_changed(component, role)
                family.add(self._sessions[key])
            return self._sessions[key]

    def helper(self, component: str) -> Session | None:
        """As `session`, of a graph that NumPy can stand for; None where the bundle or its engines are older."""
        if component not in self.bundle.manifest.components or component in self._lacking:
            return None
        try:
            return self.session(component)
        except EngineError as error:
            LOG.warning("%s runs in NumPy on the host: %s", component, error)
            self._lacking.add(component)
            return None

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

    def limits(self, component: str) -> Mapping[str, int] | None:
        """As `Backend.limits` says, of the `main` graph; asked once for all clones."""
        if component not in self._shared.limits:
            self._shared.limits[component] = self._backend.limits(component, "main")
        return self._shared.limits[component]

    def _load_changed(self, component: str, role: str) -> Session:
        """A network with the weights that the others have."""
        session = self._backend.load(component, role)
        try:
            values = self._shared.changes.values(self.bundle, component, role)
            if values:
                session.replace(values)
        except TelecineError:
            session.close()
            raise
        return session

    @contextmanager
    def request(self) -> Iterator[None]:
        """While a request runs, for which the weights stay as they are; one that begins while they change waits."""
        with self._shared.usage:
            self._shared.requests += 1
        try:
            yield
        finally:
            with self._shared.usage:
                self._shared.requests -= 1

    @property
    def changes(self) -> WeightChanges:
        return self._shared.changes

    def change_weights(self, changes: Callable[[WeightChanges], WeightChanges]) -> None:
        """Other weights, for all clones: those of what is loaded now, and of what loads later.

        Raises:
            RequestError: this pipeline is closed, or a request is running on it or a clone.
            TelecineError: the changes are refused, or a backend fails: all weights are what they were.
        """
        with self._shared.usage:
            if self._shared.requests:
                raise RequestError(
                    "this pipeline or a clone is running a request",
                    expected="none while the weights change: clones share them",
                    fix="Wait until it has ended.",
                )
            with self._shared.lock:
                self.check_open()
                before, after = self._shared.changes, changes(self._shared.changes)
                self._replace(before, after)
                self._shared.changes = after

    def _replace(self, before: WeightChanges, after: WeightChanges) -> None:
        differing = [
            component
            for component in {**before.components, **after.components}
            if before.components.get(component) is not after.components.get(component)
        ]
        replaced: list[tuple[str, str, Session]] = []
        try:
            for component in differing:
                for role, session in self._shared.live(component):
                    session.replace(after.values(self.bundle, component, role))
                    replaced.append((component, role, session))
        except TelecineError:
            for component, role, session in replaced:
                session.replace(before.values(self.bundle, component, role))
            raise

    def check_open(self) -> None:
        if self._closed:
            raise RequestError("this pipeline is closed", expected="an open one", fix="Load the bundle again.")

    def clone(self) -> LoadedModels:
        self.check_open()
        return LoadedModels(self.bundle, self._backend, shared=self._shared)

    def close(self) -> None:
        with self._shared.lock:
            self._closed = True
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()
