"""What a build will make, before it is made: profiles, keys, expected sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from telecine.backends.tensorrt.library import Library
from telecine.bundle import Bundle
from telecine.engine import Sidecar, plan_path, sidecar_path, this_platform
from telecine.errors import EngineError
from telecine.manifest import Component
from telecine.workload import Workload
from telecine_engines.key import plan_key
from telecine_engines.options import BuildOptions
from telecine_engines.profiles import Profile, plan_profiles
from telecine_engines.targets import Target
from telecine_engines.workloads import family_of

# What a plan has beside its weights, for each GPU and profile: the graph and its kernels. TensorRT for RTX 1.7 wrote 1
# to 4 MB for tiny networks; `tensorrt` has more of them in the plan.
KERNELS = 3_000_000
# Of graphs without weights, which are a few dozen kernels: 0.2 to 0.7 MB.
FEW_KERNELS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """One plan to be: `done` is the sidecar of the one that is there already with this key."""

    component: str
    role: str
    precision: str
    target: Target
    profiles: tuple[Profile, ...]
    workloads: tuple[str, ...]
    key: str
    path: Path
    expected_bytes: int
    done: Sidecar | None


def plan_build(
    bundle: Bundle,
    *,
    library: Library,
    target: Target,
    workloads: Sequence[Workload],
    options: BuildOptions,
    engines: Path,
    components: Sequence[str] = (),
) -> list[GraphPlan]:
    """A plan for every graph of the bundle (or of `components`), for one target.

    Raises:
        EngineError: an option or a precision that the target does not take, or axes that the family does not plan.
        BundleError: an unknown component or family, or a bundle without weights.
    """
    options.check(target)
    named = {name: bundle.component(name) for name in components} or bundle.manifest.components
    for name, component in named.items():
        bundle.require_weights(name)
        target.check_precision(name, component.precision)
    return [
        _plan_graph(bundle, name, component, role, library, target, workloads, options, engines)
        for name, component in named.items()
        for role in component.graphs
    ]


def _plan_graph(
    bundle: Bundle,
    name: str,
    component: Component,
    role: str,
    library: Library,
    target: Target,
    workloads: Sequence[Workload],
    options: BuildOptions,
    engines: Path,
) -> GraphPlan:
    graph = component.graphs[role]
    axis_ranges, host = family_of(bundle).axis_ranges, bundle.manifest.host
    sizes = [size for workload in workloads for size in axis_ranges(name, workload, host)]
    profiles = plan_profiles(graph.inputs, sizes)
    key = plan_key(
        component=name,
        role=role,
        graph_sha256=graph.file.sha256,
        weights_sha256=component.weights.sha256,
        target=target.name,
        library=library.name,
        library_version=library.version,
        platform=this_platform(),
        profiles=profiles,
        options=options.recorded(),
    )
    path = plan_path(engines, target=target.name, library_version=library.version, key=key, component=name, role=role)
    kernels = (KERNELS if component.weights.size else FEW_KERNELS) * len(target.capabilities) * len(profiles)
    return GraphPlan(
        component=name,
        role=role,
        precision=component.precision,
        target=target,
        profiles=profiles,
        workloads=tuple(map(str, workloads)),
        key=key,
        path=path,
        expected_bytes=kernels + (0 if options.strip_plan else component.weights.size),
        done=finished(path, key),
    )


def finished(path: Path, key: str) -> Sidecar | None:
    """The sidecar of a plan that is there, whole and built with this key. Its hash is the runtime's to check."""
    try:
        sidecar = Sidecar.read(sidecar_path(path))
        whole = path.stat().st_size == sidecar.plan_size
    except (EngineError, OSError):
        return None
    return sidecar if whole and sidecar.key == key else None


def largest_shapes(profiles: tuple[Profile, ...]) -> dict[str, tuple[int, ...]]:
    """The largest input shapes that any profile takes: the first takes every size."""
    return {name: shapes.max for name, shapes in profiles[0].items()}
