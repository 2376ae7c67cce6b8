"""One graph → one plan and its sidecar, both whole or absent; the sidecar comes last."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.atomic import atomic_file
from telecine.backends.tensorrt.library import Library
from telecine.bundle import PIECE, Bundle
from telecine.engine import FORMAT, Sidecar, sidecar_path, this_platform
from telecine.errors import EngineError
from telecine.peak_memory import PeakMemory
from telecine_engines import network as networks
from telecine_engines.attention import count_fused_attention
from telecine_engines.config import Report, add_profiles, make_config, save_timing_cache, watch
from telecine_engines.options import BuildOptions
from telecine_engines.planner import GraphPlan, largest_shapes


def estimate_activations(library: Library, bundle: Bundle, plan: GraphPlan) -> int:
    """Bytes of activations at the largest sizes of a plan, from the parsed network.

    Raises:
        EngineError: TensorRT does not take the graph.
    """
    builder = library.module.Builder(library.log)
    network = networks.parse(library, builder, *_graph(bundle, plan))
    return networks.activation_bytes(library, network, largest_shapes(plan.profiles))


def build_plan(
    library: Library,
    bundle: Bundle,
    plan: GraphPlan,
    options: BuildOptions,
    *,
    settings: Mapping[str, str | int | bool | None],
    report: Report,
) -> Sidecar:
    """Build a plan and write it, then its sidecar. `settings` are what the workloads were planned with.

    Raises:
        BundleError: the component's weights are not those that export wrote.
        EngineError: TensorRT does not take the graph, fails to build it, or the disk is full.
        KeyboardInterrupt: Ctrl-C during the build.
    """
    component = bundle.component(plan.component)
    bundle.check(component.weights, contents=True)  # the sidecar will say that the plan is made of them
    start = time.monotonic()
    with PeakMemory() as memory:
        built = _build(library, bundle, plan, options, report)
    seconds = time.monotonic() - start
    size, sha256 = _write(plan.path, built.plan)
    graph = component.graphs[plan.role]
    sidecar = Sidecar(
        format=FORMAT,
        component=plan.component,
        role=plan.role,
        precision=plan.precision,
        target=plan.target.name,
        library=library.name,
        library_version=library.version,
        platform=this_platform(),
        compute_capabilities=plan.target.dotted,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility_level,
        key=plan.key,
        plan_size=size,
        plan_sha256=sha256,
        graph_sha256=graph.file.sha256,
        weights_sha256=component.weights.sha256,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=plan.profiles,
        workloads=plan.workloads,
        options={**options.recorded(), **settings},
        refit=options.refit,
        stripped=options.strip_plan,
        weight_streaming=options.weight_streaming,
        precisions=built.precisions,
        layers=built.layers,
        fused_attention=built.fused_attention,
        build_seconds=round(seconds, 1),
        build_peak_bytes=memory.peak,
    )
    with atomic_file(sidecar_path(plan.path)) as partial:
        partial.write_text(sidecar.dump(), encoding="utf-8")
    return sidecar


@dataclass(frozen=True, slots=True)
class _Built:
    """A serialised plan (TensorRT's IHostMemory), and what the parsed network was."""

    plan: Any
    precisions: dict[str, int]
    layers: int
    fused_attention: int | None


def _build(library: Library, bundle: Bundle, plan: GraphPlan, options: BuildOptions, report: Report) -> _Built:
    builder = library.module.Builder(library.log)
    path, graph = _graph(bundle, plan)
    network = networks.parse(library, builder, path, graph)
    networks.let_attention_decompose(library, network)
    config = make_config(library, builder, plan.target, options)
    add_profiles(builder, config, plan.profiles)
    precisions, layers = networks.census(network), network.num_layers
    monitor = watch(library, config, report)
    serialized = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        raise EngineError(
            f"{library.name} {library.version} does not build {path} for {plan.target.name}: {library.errors()}",
            expected="a graph and options that it builds for that GPU",
            fix="Run with -v for all that TensorRT says; with less memory than 4 times the weights, free some.",
        )
    if options.timing_cache is not None:
        save_timing_cache(config, options.timing_cache)
    # A stripped plan does not open before its weights are in.
    fused = None if options.strip_plan else count_fused_attention(library, plan.target, serialized)
    return _Built(serialized, precisions, layers, fused)


def _graph(bundle: Bundle, plan: GraphPlan) -> tuple[Path, Any]:
    graph = bundle.graph(plan.component, plan.role)
    return bundle.path(graph.file), graph


def _write(path: Path, serialized: Any) -> tuple[int, str]:
    """Write a plan; returns its size and SHA-256. A sidecar of an older plan at this path goes first.

    Raises:
        EngineError: the disk is full, or fails.
    """
    content = memoryview(serialized).cast("B")
    digest = hashlib.sha256()
    try:
        sidecar_path(path).unlink(missing_ok=True)
        with atomic_file(path) as partial, partial.open("wb") as file:
            for start in range(0, len(content), PIECE):
                piece = content[start : start + PIECE]
                digest.update(piece)
                file.write(piece)
    except OSError as error:
        raise EngineError(
            f"writing {path} failed ({error.strerror or error})",
            expected=f"room for {len(content):,} bytes",
            fix="Free space, or build elsewhere: --engines DIR. What was built before stays.",
        ) from error
    return len(content), digest.hexdigest()
