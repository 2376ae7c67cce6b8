"""Plans of the TensorRT double for a bundle's graphs, with the sidecars that telecine build would write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from doubles.tensorrt_module import VERSIONS
from telecine.axes import parse_rule
from telecine.bundle import Bundle
from telecine.engine import FORMAT, Range, Sidecar, plan_path, sidecar_path
from telecine.manifest import TensorSpec

# Sizes of every symbol: the smallest, the one to tune for, the largest.
WIDE = {"": (1, 4, 4096)}
SMALL_BATCH = {"batch": (1, 1, 3)}
Sizes = dict[str, tuple[int, int, int]]


def profile(inputs: tuple[TensorSpec, ...], sizes: Sizes) -> dict[str, Range]:
    """A range for each input with a dynamic axis; `sizes[""]` is for symbols that are not named."""

    def bound(spec: TensorSpec, which: int) -> tuple[int, ...]:
        return tuple(_size(rule, sizes, which) for rule in spec.shape)

    return {
        spec.name: Range(min=bound(spec, 0), opt=bound(spec, 1), max=bound(spec, 2))
        for spec in inputs
        if any(isinstance(rule, str) for rule in spec.shape)
    }


def _size(rule: int | str, sizes: Sizes, which: int) -> int:
    if isinstance(rule, int):
        return rule
    scale, symbol, offset = parse_rule(rule)
    return scale * sizes.get(symbol, sizes[""])[which] + offset


def write_plan(
    bundle: Bundle,
    component: str,
    role: str = "main",
    *,
    engines: Path | None = None,
    profiles: tuple[Sizes, ...] = (WIDE,),
    library: str = "tensorrt",
    version: str | None = None,
    capabilities: tuple[str, ...] = ("8.9",),
    target: str = "trt-sm89",
    key: str = "0123456789abcdef",
    **changes: Any,
) -> Path:
    """A plan of a graph and its sidecar; `changes` are other values of the sidecar."""
    graph, part = bundle.graph(component, role), bundle.component(component)
    version = version or VERSIONS[library]
    ranges = tuple(profile(graph.inputs, {**WIDE, **sizes}) for sizes in profiles)
    flags = {name: bool(changes.get(name)) for name in ("refit", "stripped", "weight_streaming", "version_compatible")}
    content = json.dumps(
        flags
        | {
            "graph": str(bundle.path(graph.file).resolve()),
            "version": version,
            "capabilities": list(capabilities),
            "inputs": [dataclasses.asdict(spec) for spec in changes.get("inputs", graph.inputs)],
            "outputs": [dataclasses.asdict(spec) for spec in changes.get("outputs", graph.outputs)],
            "graph_dtypes": {spec.name: spec.dtype for spec in graph.inputs},
            "weights": {},
            "attention": [],
            "host_code": False,
            "profiles": [{name: dataclasses.asdict(limits) for name, limits in each.items()} for each in ranges],
        }
    ).encode()
    fields: dict[str, Any] = {
        "format": FORMAT, "component": component, "role": role, "precision": part.precision, "target": target,
        "library": library, "library_version": version, "platform": f"linux-{platform.machine()}",
        "compute_capabilities": capabilities, "hardware_compatibility": "NONE", "key": key,
        "plan_size": len(content), "plan_sha256": hashlib.sha256(content).hexdigest(),
        "graph_sha256": graph.file.sha256, "weights_sha256": part.weights.sha256,
        "inputs": graph.inputs, "outputs": graph.outputs, "profiles": ranges, "workloads": ("64x64x9",),
        "options": {}, "precisions": {}, "layers": 1, "fused_attention": None, "build_seconds": 0.0,
        "build_peak_bytes": 0,
    }  # fmt: skip
    sidecar = Sidecar(**{**fields, **flags, **changes})
    folder = bundle.root / "engines" if engines is None else engines
    path = plan_path(folder, target=target, library_version=version, key=key, component=component, role=role)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    sidecar_path(path).write_text(sidecar.dump())
    return path
