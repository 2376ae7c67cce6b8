"""Plans of a folder, and all that is checked before one is deserialised: it may not fit, and then it must not run."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from telecine.backends.cuda.device import Device
from telecine.backends.tensorrt.library import Library, library_for
from telecine.bundle import PIECE, Bundle
from telecine.engine import Sidecar, sidecar_path, this_platform
from telecine.errors import EngineError

BUILD = "Run: telecine build BUNDLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan whose sidecar says that it is this bundle's, and fits this GPU and an installed library."""

    path: Path
    sidecar: Sidecar
    library: Library


def find_plan(engines: Path, bundle: Bundle, component: str, role: str, device: Device) -> Plan:
    """The newest plan of a graph in a folder of engines that fits.

    Raises:
        EngineError: there is none; where some are there, why each does not fit.
        BundleError: the bundle lacks the graph.
    """
    paths = plan_paths(engines, component, role)
    problems: list[EngineError] = []
    for path in paths:
        found = _fitting(path, bundle, component, role, device)
        if isinstance(found, Plan):
            return found
        problems.append(found)
    if not problems:
        raise EngineError(
            f"{engines} has no engine for {component} ({role})",
            expected=f"TARGET-trtVERSION/KEY/{component}.{role}.plan, which telecine build writes",
            fix=f"{BUILD}, name the folder with engines=DIR (--engines), or use backend='onnxruntime'.",
        )
    if len(problems) == 1:
        raise problems[0]
    raise EngineError(
        f"none of {len(problems)} engines for {component} ({role}) fits: "
        + "; ".join(f"{path.parent.parent.name}: {error.got}" for path, error in zip(paths, problems, strict=True)),
        expected=problems[0].expected,
        fix=problems[0].fix,
    )


def plan_paths(engines: Path, component: str, role: str) -> list[Path]:
    """The plans of a graph, fitting or not, the newest first."""
    return sorted(engines.glob(f"*/*/{component}.{role}.plan"), key=_modified, reverse=True)


def _fitting(path: Path, bundle: Bundle, component: str, role: str, device: Device) -> Plan | EngineError:
    """The plan, or why it does not fit."""
    try:
        sidecar = Sidecar.read(sidecar_path(path))
        check_origin(path, sidecar, bundle, component, role)
        check_machine(path, sidecar, device)
        return Plan(path=path, sidecar=sidecar, library=library_for(sidecar))
    except EngineError as error:
        return error


def check_origin(path: Path, sidecar: Sidecar, bundle: Bundle, component: str, role: str) -> None:
    """
    Raises:
        EngineError: the plan is of another graph, or was built from another version of this one or of its weights.
    """
    if (sidecar.component, sidecar.role) != (component, role):
        raise EngineError(
            f"{path} is of {sidecar.component} ({sidecar.role})", expected=f"{component} ({role})", fix=f"{BUILD}"
        )
    graph, weights = bundle.graph(component, role).file, bundle.component(component).weights
    for what, got, entry in (("graph", sidecar.graph_sha256, graph), ("weights", sidecar.weights_sha256, weights)):
        if got != entry.sha256:
            raise EngineError(
                f"{path} was built from another {entry.path} (the {what}'s SHA-256 is {got[:12]}...)",
                expected=f"{entry.sha256[:12]}..., as the bundle has now",
                fix=f"{BUILD}: it builds what has changed.",
            )


def check_machine(path: Path, sidecar: Sidecar, device: Device) -> None:
    """
    Raises:
        EngineError: the plan is for another platform, or for GPUs of another compute capability.
    """
    here = this_platform()
    if sidecar.platform != here:
        raise EngineError(f"{path} is for {sidecar.platform}", expected=here, fix=f"{BUILD} on this machine.")
    if not _runs_on(sidecar, device.compute_capability):
        also = " and newer" if sidecar.hardware_compatibility == "AMPERE_PLUS" else ""
        kind = "rtx" if sidecar.library == "tensorrt_rtx" else "trt"
        target = f"{kind}-sm{device.compute_capability.replace('.', '')}"
        raise EngineError(
            f"{path} is for compute capability {', '.join(sidecar.compute_capabilities)}{also}",
            expected=f"{device.compute_capability}, of cuda:{device.index}",
            fix=f"{BUILD} --target {target}",
        )


def _runs_on(sidecar: Sidecar, capability: str) -> bool:
    """By TensorRT's HardwareCompatibilityLevel: AMPERE_PLUS runs on 8.0 and newer, the others on what was named."""
    if sidecar.hardware_compatibility == "AMPERE_PLUS":
        return tuple(map(int, capability.split("."))) >= (8, 0)
    return capability in sidecar.compute_capabilities


@contextmanager
def checked_content(plan: Plan) -> Iterator[mmap.mmap]:
    """The bytes of a plan, which are those that the builder wrote: what is checked is what is deserialised.

    Raises:
        EngineError: the file is missing, cut or changed.
    """
    path, sidecar = plan.path, plan.sidecar
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != sidecar.plan_size or size == 0:
                raise _damaged(path, f"has {size} bytes", str(sidecar.plan_size))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                digest = hashlib.sha256()
                for start in range(0, size, PIECE):
                    digest.update(content[start : start + PIECE])
                if digest.hexdigest() != sidecar.plan_sha256:
                    raise _damaged(path, "has changed: its SHA-256 is another", sidecar.plan_sha256)
                yield content
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})", "a plan that can be read") from error


def _damaged(path: Path, problem: str, expected: str) -> EngineError:
    return EngineError(f"{path} {problem}", expected=expected, fix=f"{BUILD}, or copy the engines again.")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it goes while a build replaces it
        return 0.0
