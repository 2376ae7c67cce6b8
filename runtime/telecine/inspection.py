"""What `telecine inspect` prints of a bundle."""

from __future__ import annotations

import json

from telecine.bundle import Bundle
from telecine.manifest import Component, TensorSpec


def as_text(bundle: Bundle, *, weights_checked: bool) -> str:
    """The bundle in lines: model, components with graphs and axes, presets, exporter."""
    manifest = bundle.manifest
    parts = manifest.components.values()
    total = sum(part.weights.size for part in parts)
    lines = [
        f"{bundle.root}",
        f"  {manifest.family} {manifest.variant}, {manifest.pipeline}, format {manifest.format}",
        f"  {sum(part.parameters for part in parts):,} parameters, {_bytes(total)} of weights, "
        + ("every hash checked" if weights_checked else "weights' sizes checked (--check hashes them)"),
    ]
    for name, component in manifest.components.items():
        lines += _component(name, component)
    lines += [f"preset {name}: {json.dumps(values)}" for name, values in manifest.presets.items()]
    lines.append("exported by " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return "\n".join(lines)


def _component(name: str, component: Component) -> list[str]:
    lines = [
        f"{name}: {component.precision}, opset {component.opset}, {component.parameters:,} parameters, "
        f"{_bytes(component.weights.size)}"
    ]
    lines += [f"  refitted: {line}" for line in component.refitted]
    for role, graph in component.graphs.items():
        lines.append(f"  {role} ({_bytes(graph.file.size)})")
        lines += [f"    in   {_tensor(spec)}" for spec in graph.inputs]
        lines += [f"    out  {_tensor(spec)}" for spec in graph.outputs]
    return lines


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # from there on three digits would round to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
