"""bundle → engines: plan all, show the plan, then build what is not there yet, one graph after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from telecine.backends.tensorrt.library import Library
from telecine.bundle import Bundle
from telecine.engine import Sidecar, sidecar_path
from telecine.workload import Workload
from telecine_engines.builder import build_plan, estimate_activations
from telecine_engines.library import open_library
from telecine_engines.lock import build_lock
from telecine_engines.options import BuildOptions
from telecine_engines.planner import GraphPlan, plan_build
from telecine_engines.targets import parse_target
from telecine_engines.workloads import family_of, parse_workloads


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build: `targets` and `workloads` as on the command line; no `components` are all of them.

    `engines` is where plans go, the bundle's own folder by default. `vae_tile` and `keyframes`: see `Workload`;
    None is the family's own.
    """

    bundle: Bundle
    targets: Sequence[str] = ("local",)
    workloads: Sequence[str] = ()
    components: Sequence[str] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    engines: Path | None = None
    vae_tile: str | None = None
    keyframes: int | None = None

    @property
    def folder(self) -> Path:
        return self.engines or self.bundle.root / "engines"

    @property
    def settings(self) -> dict[str, str | int | bool | None]:
        """What the workloads are planned with, beside their sizes."""
        family = family_of(self.bundle)
        return {
            "vae_tile": family.vae_tile if self.vae_tile is None else self.vae_tile,
            "keyframes": family.keyframes if self.keyframes is None else self.keyframes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Callbacks of a build: the plan with the activations' bytes where known, steps of TensorRT, finished plans."""

    planned: Callable[[Planned], None] = lambda planned: None
    started: Callable[[GraphPlan], None] = lambda plan: None
    phase: Callable[[str, int, int], None] = lambda name, done, steps: None
    finished: Callable[[GraphPlan, Sidecar], None] = lambda plan, sidecar: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Plans to be and their expected activations in bytes; None for those that are there already."""

    plans: tuple[GraphPlan, ...]
    workloads: tuple[Workload, ...]
    activations: tuple[int | None, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "component": plan.component,
                "role": plan.role,
                "precision": plan.precision,
                "target": plan.target.name,
                "workloads": plan.workloads,
                "profiles": [{name: asdict(shapes) for name, shapes in profile.items()} for profile in plan.profiles],
                "key": plan.key,
                "plan": str(plan.path),
                "expected_plan_bytes": plan.expected_bytes,
                "expected_activation_bytes": activations,
                "built": plan.done is not None,
            }
            for plan, activations in zip(self.plans, self.activations, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Every plan's sidecar, those built now by their paths, and the seconds that it all took."""

    sidecars: dict[Path, Sidecar]
    built: tuple[Path, ...]
    seconds: float


def plan_engines(request: BuildRequest) -> Planned:
    """What `build_engines` would make, with TensorRT's parser and without its builder.

    Raises:
        EngineError: an option, target, workload or graph that cannot be built here.
        BundleError: an unknown component, or a bundle without weights.
    """
    workloads, plans = _plan(request)
    activations: dict[tuple[str, str], int] = {}  # the same for every target
    for library, plan in plans:
        if plan.done is None and (plan.component, plan.role) not in activations:
            activations[plan.component, plan.role] = estimate_activations(library, request.bundle, plan)
    return Planned(
        plans=tuple(plan for _, plan in plans),
        workloads=tuple(workloads),
        activations=tuple(activations[plan.component, plan.role] if plan.done is None else None for _, plan in plans),
    )


def _plan(request: BuildRequest) -> tuple[list[Workload], list[tuple[Library, GraphPlan]]]:
    workloads = parse_workloads(
        request.workloads, request.bundle, vae_tile=request.vae_tile, keyframes=request.keyframes
    )
    plans: list[tuple[Library, GraphPlan]] = []
    for target in dict.fromkeys(map(parse_target, request.targets)):
        library = open_library(target.library)
        planned = plan_build(
            request.bundle,
            library=library,
            target=target,
            workloads=workloads,
            options=request.options,
            engines=request.folder,
            components=request.components,
        )
        plans += [(library, plan) for plan in planned]
    return workloads, plans


def build_engines(request: BuildRequest, progress: Progress | None = None) -> BuildReport:
    """Build every plan that is not there yet. A kill loses the plan in work and nothing else.

    Raises:
        as `plan_engines`; and
        EngineError: another build is at work in the folder, the folder cannot be written, or TensorRT fails.
        KeyboardInterrupt: Ctrl-C; what was built stays.
    """
    start = time.monotonic()
    progress = progress or Progress()
    _, plans = _plan(request)  # what is wrong is refused before anything is written
    sidecars = {plan.path: plan.done for _, plan in plans if plan.done is not None}
    built: list[Path] = []
    if len(sidecars) < len(plans):
        with build_lock(request.folder):
            planned = plan_engines(request)  # again: another process may just have built
            progress.planned(planned)
            for plan in planned.plans:
                sidecars[plan.path] = plan.done or _build(request, plan, progress)
                if plan.done is None:
                    built.append(plan.path)
    for path in set(sidecars) - set(built):
        _make_newest(path)
    return BuildReport(sidecars=sidecars, built=tuple(built), seconds=time.monotonic() - start)


def _make_newest(path: Path) -> None:
    """Let a plan that is there already be found before those that were built for other workloads after it."""
    with suppress(OSError):  # a folder that cannot be written, in which nothing else is built either
        for file in (path, sidecar_path(path)):
            os.utime(file)


def _build(request: BuildRequest, plan: GraphPlan, progress: Progress) -> Sidecar:
    progress.started(plan)
    sidecar = build_plan(
        open_library(plan.target.library),
        request.bundle,
        plan,
        request.options,
        settings=request.settings,
        report=progress.phase,
    )
    progress.finished(plan, sidecar)
    return sidecar
