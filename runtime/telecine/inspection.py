"""What `telecine inspect` prints of a bundle."""

from __future__ import annotations

import json

from telecine.bundle import Bundle
from telecine.engine import Sidecar
from telecine.engines_folder import list_engines
from telecine.manifest import Component, Manifest, TensorSpec


def as_text(bundle: Bundle, *, weights_checked: bool) -> str:
    """The bundle in lines: model, components with graphs and axes, presets, exporter."""
    manifest = bundle.manifest
    parts = manifest.components.values()
    total = sum(part.weights.size for part in bundle.with_weights())
    lines = [
        f"{bundle.root}",
        f"  {manifest.family} {manifest.variant}, {manifest.pipeline}, format {manifest.format}",
        f"  {sum(part.parameters for part in parts):,} parameters, {show_bytes(total)} of weights, "
        + ("every hash checked" if weights_checked else "weights' sizes checked (--check hashes them)"),
    ]
    for name, component in manifest.components.items():
        lines += _component(name, component)
    for engine in list_engines(bundle.root / "engines"):
        lines += _engine(engine.sidecar)
    lines += quality_lines(manifest)
    lines += [f"preset {name}: {json.dumps(values)}" for name, values in manifest.presets.items()]
    lines.append("exported by " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return "\n".join(lines)


def _component(name: str, component: Component) -> list[str]:
    lines = [
        f"{name}: {component.precision}, opset {component.opset}, {component.parameters:,} parameters, "
        + ("engines only" if component.packed else show_bytes(component.weights.size))
    ]
    lines += [f"  refitted: {line}" for line in component.refitted]
    for role, graph in component.graphs.items():
        lines.append(f"  {role} ({show_bytes(graph.file.size)})")
        lines += [f"    in   {_tensor(spec)}" for spec in graph.inputs]
        lines += [f"    out  {_tensor(spec)}" for spec in graph.outputs]
    return lines


def _engine(sidecar: Sidecar) -> list[str]:
    lines = [
        f"engine {sidecar.component}.{sidecar.role} for {sidecar.target}: {sidecar.library} {sidecar.library_version}, "
        f"{sidecar.precision}, {show_bytes(sidecar.plan_size)}, {', '.join(sidecar.workloads)}"
    ]
    for number, profile in enumerate(sidecar.profiles):
        shapes = (f"{name} {list(each.min)}..{list(each.max)}" for name, each in profile.items())
        lines.append(f"  profile {number}: {', '.join(shapes)}")
    return lines


def quality_lines(manifest: Manifest) -> list[str]:
    """What the bundle's precisions cost, in lines; none where all of it is fp32."""
    quality = manifest.quality
    if all(part.precision == "fp32" for part in manifest.components.values()):
        return []
    if not quality.measured:
        return ["quality next to fp32: not measured"]
    lines = [
        f"quality next to fp32: PSNR {_decibels(quality.psnr)} (floor {quality.floor:g} dB), SSIM {quality.ssim:.4f}, "
        f"frame differences {_decibels(quality.temporal_psnr)}"
    ]
    lines += [f"  {name} alone: {_decibels(value)}" for name, value in quality.components.items()]
    if quality.kept:
        lines.append(f"  too sensitive for fp8: {', '.join(quality.kept)}")
    if quality.promoted:
        lines.append(
            f"  kept in higher precision ({show_bytes(quality.promoted_bytes)} more, PSNR without: "
            f"{_decibels(quality.promoted_psnr)}): {', '.join(quality.promoted)}"
        )
    return lines


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def show_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # from there on three digits would round to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
