"""A job: what it needs, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpu_checks.facts import CUDA_BINDINGS, Facts
from telecine.inspection import show_bytes

Status = Literal["PASS", "FAIL", "SKIP"]
Kind = Literal["prepare", "check", "speed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of a task (a function of `tasks`), in a process of its own, for at most `limit` seconds. All need a GPU:
    what prepares would be for nothing without one.

    `after`: jobs that must have passed. `libraries`: as `Facts` names them. `capabilities`: of GPUs that it runs on;
    none is all from `first_capability` on. Memories and disk in bytes.
    """

    name: str
    kind: Kind
    task: str
    arguments: Mapping[str, Any]
    limit: float
    after: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = ()
    first_capability: int = 0
    gpu_memory: int = 0
    memory: int = 0
    disk: int = 0

    def lacks(self, facts: Facts, disk: int) -> str | None:
        """Why it cannot run on a machine with so much disk; None where it can."""
        if facts.gpu is None:
            return facts.broken[CUDA_BINDINGS]
        for library in (CUDA_BINDINGS, *self.libraries):
            if library not in facts.works:
                return f"{library} does not work here: {facts.broken[library]}"
        needed = self.first_capability
        if facts.capability < needed or (self.capabilities and facts.capability not in self.capabilities):
            wanted = ", ".join(f"sm{each}" for each in self.capabilities) or f"sm{needed} or newer"
            return f"the GPU is sm{facts.capability}, not {wanted}"
        for what, need, has in (
            ("GPU memory", self.gpu_memory, facts.gpu_memory),
            ("free memory", self.memory, facts.memory),
            ("free disk", self.disk, disk),
        ):
            if need > has:
                return f"{show_bytes(need)} of {what} are needed, there are {show_bytes(has)}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job, in `seconds`; `detail` says why, `figures` are what the task told."""

    job: str
    kind: Kind
    status: Status
    detail: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
