"""A bundle of plans for a box: graphs, tokenizer and manifest as they are, engines of some targets, no weights."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from telecine.atomic import atomic_folder
from telecine.bundle import PIECE, Bundle, is_bundle
from telecine.engine import Sidecar, sidecar_path
from telecine.engines_folder import Engine, list_engines
from telecine.errors import EngineError
from telecine.manifest import FILE_NAME


def pack(
    bundle: Bundle, out: Path, *, targets: Sequence[str], engines: Path | None = None, overwrite: bool = False
) -> Bundle:
    """Write the bundle `out`, which `telecine.load` opens with backend="tensorrt" and nothing else does.

    Of each graph it holds the newest plan for every target. It appears whole, in one rename, or not at all.

    Raises:
        EngineError: a graph has no plan for a target, or one that is stripped or damaged.
        RequestError: `out` exists (without `overwrite`) or cannot be written.
    """
    folder = engines or bundle.root / "engines"
    chosen = [engine for target in targets for engine in _choose(bundle, folder, target)]
    with atomic_folder(out, overwrite=overwrite, is_ours=is_bundle) as partial:
        for entry in bundle.hashed_files():
            _copy(bundle.path(entry), partial / entry.path)
        for engine in chosen:
            plan = partial / "engines" / engine.plan.relative_to(folder)
            _copy_plan(engine, plan)
            _copy(sidecar_path(engine.plan), sidecar_path(plan))
        components = {
            name: dataclasses.replace(component, packed=True) for name, component in bundle.manifest.components.items()
        }
        manifest = dataclasses.replace(bundle.manifest, components=components)
        (partial / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")
        Bundle.open(partial)  # what cannot be opened does not appear
    return Bundle.open(out)


def _choose(bundle: Bundle, folder: Path, target: str) -> list[Engine]:
    """The newest plan of every graph for a target, of those that were made of this bundle's files."""
    chosen: dict[tuple[str, str], Engine] = {}
    for engine in list_engines(folder):  # the newest come last
        if engine.sidecar.target == target and _is_of(bundle, engine.sidecar):
            chosen[engine.sidecar.component, engine.sidecar.role] = engine
    wanted = {(name, role) for name, part in bundle.manifest.components.items() for role in part.graphs}
    if missing := sorted(wanted - set(chosen)):
        found = sorted({engine.sidecar.target for engine in list_engines(folder)})
        raise EngineError(
            f"{folder} has no plan of {', '.join(f'{name}.{role}' for name, role in missing)} for {target}",
            expected=f"one of every graph (there are plans for {', '.join(found) or 'no target'})",
            fix=f"Run: telecine build {bundle.root} --target {target}",
        )
    if stripped := sorted(name for (name, _), engine in chosen.items() if engine.sidecar.stripped):
        raise EngineError(
            f"the plans of {', '.join(stripped)} for {target} are stripped, and packing leaves the weights out",
            expected="plans with their weights",
            fix=f"Run without --strip-plan: telecine build {bundle.root} --target {target}",
        )
    return list(chosen.values())


def _is_of(bundle: Bundle, sidecar: Sidecar) -> bool:
    component = bundle.manifest.components.get(sidecar.component)
    graph = component.graphs.get(sidecar.role) if component else None
    return (
        component is not None
        and graph is not None
        and sidecar.weights_sha256 == component.weights.sha256
        and sidecar.graph_sha256 == graph.file.sha256
    )


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


def _copy_plan(engine: Engine, destination: Path) -> None:
    """Copy a plan and hash it on the way."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with engine.plan.open("rb") as source, destination.open("wb") as file:
        while piece := source.read(PIECE):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != engine.sidecar.plan_sha256:
        raise EngineError(
            f"{engine.plan} has changed: its SHA-256 is another",
            expected=engine.sidecar.plan_sha256,
            fix="Remove that file, then run telecine build again.",
        )
