"""A bundle's networks: loaded when first asked for, and once for all clones of a pipeline."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from telecine.backends.base import NetworkFacts, Session
from telecine.backends.choice import Backend
from telecine.bundle import Bundle
from telecine.errors import BundleError, EngineError, RequestError, TelecineError
from telecine.families import FAMILIES
from telecine.families.base import Stage
from telecine.initializers import widest_layer
from telecine.memory_budget import Need, Residents, activation_bytes, predicted_peak
from telecine.peak_memory import MemoryUse, highest_resident_bytes, resident_bytes
from telecine.prompt_cache import PromptCache
from telecine.tiling.options import show_size
from telecine.tokenizer import Tokenizer
from telecine.weight_changes import WeightChanges

logger = logging.getLogger(__name__)

TEXT_ENCODER = "text_encoder"
PROMPT_CACHE = 64 << 20  # bytes: the 16 latest prompts of T5-XXL at 256 tokens


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


class _Shared:
    """What the clones of a pipeline have between them: each network is loaded once, and lives while one holds it."""

    def __init__(self, prompts: PromptCache) -> None:
        self.lock = threading.Lock()
        self.loading: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self.facts: dict[tuple[str, str], NetworkFacts] = {}  # by component and role, with the bundle's own weights
        self.widest: dict[str, int] = {}  # by component
        self.resident_before = resident_bytes()
        self.device_before: int | None = None
        self.prompts = prompts
        self.tokenizer: Tokenizer | None = None
        self.sessions: dict[tuple[str, str], weakref.WeakSet[Session]] = {}
        self.usage = threading.Lock()  # held while the weights change, and for a moment where a request begins or ends
        self.requests = 0
        self.changes = WeightChanges()
        self.limits: dict[tuple[str, str], Mapping[str, int] | None] = {}  # by component and role

    def live(self, component: str) -> Iterator[tuple[str, Session]]:
        """One session by role of each of a component's networks that are loaded."""
        for (name, role), family in self.sessions.items():
            session = next((session for session in family if not session.closed), None)
            if name == component and session is not None:
                yield role, session


class LoadedModels:
    """A bundle's networks on a backend, loaded when first asked for and kept."""

    def __init__(
        self, bundle: Bundle, backend: Backend, *, prompt_cache: int = PROMPT_CACHE, shared: _Shared | None = None
    ) -> None:
        """`prompt_cache`: bytes of prompts' embeddings to keep."""
        if bundle.manifest.family not in FAMILIES:
            raise BundleError(
                f"{bundle.root} holds a {bundle.manifest.family} model",
                expected=f"one of {', '.join(FAMILIES)}",
                fix="Upgrade telecine.",
            )
        self.bundle, self._backend = bundle, backend
        self._shared = shared or _Shared(PromptCache(prompt_cache))
        self._sessions: dict[tuple[str, str], Session] = {}
        self._lacking: set[str] = set()  # graphs without an engine, which NumPy stands for
        self._stage: Stage = _untimed
        self._closed = False
        self._needs: dict[str, Need] = {}  # of the run's stages
        self._limit: int | None = None
        self._all_fit = True  # within the limit, at once
        self._residents = Residents()
        self._streamed: dict[str, int | None] = {}  # bytes of weights that are loaded, where the others are streamed
        self.keeps_frames = True
        self._memory = MemoryUse()
        self._ahead: threading.Thread | None = None

    @property
    def host(self) -> Mapping[str, Any]:
        return self.bundle.manifest.host

    @property
    def tokenizer(self) -> Tokenizer:
        with self._shared.lock:
            if self._shared.tokenizer is None:
                self._shared.tokenizer = Tokenizer.load(self.bundle.path(self.bundle.manifest.tokenizer))
            return self._shared.tokenizer

    @property
    def prompts(self) -> PromptCache:
        return self._shared.prompts

    def session(self, component: str, role: str = "main") -> Session:
        self._make_room(component, role)
        session = self._open((component, role))
        self._load_ahead(component)
        return session

    def _open(self, key: tuple[str, str]) -> Session:
        if key not in self._sessions or self._closed:
            with self._stage("load"):
                self._load(key)
        return self._sessions[key]

    def _load(self, key: tuple[str, str]) -> None:
        """Load a network, unless it is; once for all clones and threads."""
        with self._shared.loading[key]:  # two that load one network at once would each hold the weights
            with self._shared.lock:
                self.check_open()
                if key in self._sessions:
                    return
                family = self._shared.sessions.setdefault(key, weakref.WeakSet())
                relative = next((session for session in family if not session.closed), None)
            session = relative.clone() if relative else self._load_changed(*key)
            with self._shared.lock:
                if self._closed:
                    session.close()
                self.check_open()
                self._sessions[key] = session
                family.add(session)

    def _load_ahead(self, component: str) -> None:
        """Load the next stage's network while this one's runs, where the limit has room for both."""
        stages = list(self._needs)
        following = stages[stages.index(component) + 1 :][:1] if component in stages else []
        first = [(name, self._needs[name].roles[0]) for name in following]
        missing = [key for key in first if key not in self._sessions]
        if missing and self._all_fit and self._ahead is None:
            self._ahead = threading.Thread(target=self._try_load, args=missing, name="telecine-load")
            self._ahead.start()

    def _try_load(self, key: tuple[str, str]) -> None:
        with suppress(TelecineError, MemoryError):  # whoever needs it loads it again, and is told
            self._load(key)

    def _make_room(self, component: str, role: str) -> None:
        """Drop networks of other stages where the run's limit asks for it, and one that streams other weights."""
        self._note_device()
        facts = self.facts(component, role)
        need = self._needs.get(component) or Need(
            component=component, weights=facts.weights, streams=facts.streams, roles=(role,)
        )
        before = self._residents.held.get(component)
        _, dropped = self._residents.enter(need, self._limit)
        held = self._residents.held[component]
        share = held.weights // len(held.roles)
        self._streamed[component] = share if held.weights < need.weights else None
        if need.streams and before is not None and before.weights // len(before.roles) != share:
            dropped = (*dropped, component)
        for key in [key for key in self._sessions if key[0] in dropped]:
            self._sessions.pop(key).close()

    def _note_device(self) -> None:
        """Networks keep their activations' memory: what is taken after a stage is what it took."""
        taken = self._backend.device_bytes()
        if taken is None:
            return
        if self._shared.device_before is None:
            self._shared.device_before = taken
        self._memory.device = max(self._memory.device or 0, taken - self._shared.device_before)

    def expect(self, needs: Sequence[Need], limit: int | None) -> None:
        self._needs, self._limit = {need.component: need for need in needs}, limit
        self._residents = Residents(dict(self._still_held()))
        self._all_fit = limit is None or predicted_peak(needs, None, self._residents.held) <= limit
        peak = predicted_peak(needs, limit, self._residents.held)
        if peak > (self._memory.predicted or 0):
            self._memory.predicted, self._memory.limit = peak, limit
            within = "no limit" if limit is None else f"of {show_size(limit)}"
            logger.info("this run is predicted to take at most %s of memory (%s)", show_size(peak), within)

    def _still_held(self) -> Iterator[tuple[str, Need]]:
        """What earlier runs left loaded, with the weights that it has now."""
        loaded = dict(self._sessions)
        for name, need in self._residents.held.items():
            roles = tuple(role for component, role in loaded if component == name)
            if roles:
                facts = [self.facts(name, role) for role in roles]
                weights = need.weights if facts[0].streams else sum(each.weights for each in facts)
                yield name, replace(need, weights=weights, roles=roles)

    def facts(self, component: str, role: str = "main") -> NetworkFacts:
        key = (component, role)
        if key not in self._shared.facts:
            self._shared.facts[key] = self._backend.facts(component, role)
        facts = self._shared.facts[key]
        change = self.changes.components.get(component)
        return replace(facts, weights=facts.replaced) if change is not None and change.acts else facts

    def activation_bytes(self, component: str, rows: int) -> int:
        if component not in self._shared.widest:
            self._shared.widest[component] = widest_layer(self.bundle.path(self.bundle.graph(component).file))
        precision = self.bundle.component(component).precision
        return activation_bytes(rows, self._shared.widest[component], precision)

    def helper(self, component: str) -> Session | None:
        """As `session`, of a graph that NumPy can stand for; None where the bundle or its engines are older."""
        if component not in self.bundle.manifest.components or component in self._lacking:
            return None
        try:
            return self._open((component, "main"))  # it has no weights: no room is made for it
        except EngineError as error:
            logger.warning("%s runs in NumPy on the host: %s", component, error)
            self._lacking.add(component)
            return None

    @contextmanager
    def running(self, stage: Stage, memory: MemoryUse, *, keeps_frames: bool) -> Iterator[None]:
        """Within this, loading a network is `stage("load")`, and a run may tell its `memory` by `expect`."""
        self._stage, self._memory, self.keeps_frames = stage, memory, keeps_frames
        before = highest_resident_bytes()
        try:
            yield
            self._note_device()
        finally:
            if self._ahead is not None:
                self._ahead.join()
            self._ahead = None
            self._stage, self._needs, self._limit, self._all_fit = _untimed, {}, None, True
            peak = highest_resident_bytes()
            if peak and before and self._shared.resident_before and peak > before:
                memory.measured = peak - self._shared.resident_before

    def require(self, component: str) -> None:
        """
        Raises:
            BundleError: the bundle lacks the component.
        """
        self.bundle.component(component)

    def limits(self, component: str, role: str = "main") -> Mapping[str, int] | None:
        """As `Backend.limits` says; asked once for all clones."""
        key = (component, role)
        if key not in self._shared.limits:
            self._shared.limits[key] = self._backend.limits(component, role)
        return self._shared.limits[key]

    def _load_changed(self, component: str, role: str) -> Session:
        """A network with the weights that the others have."""
        session = self._backend.load(component, role, self._streamed.get(component))
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
                if before.components.get(TEXT_ENCODER) is not after.components.get(TEXT_ENCODER):
                    self._shared.prompts.clear()

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
