"""What `telecine inspect` prints of a bundle."""

from __future__ import annotations

import json

from telecine.bundle import Bundle
from telecine.manifest import Component, Manifest, TensorSpec


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
    lines += quality_lines(manifest)
    lines += [f"preset {name}: {json.dumps(values)}" for name, values in manifest.presets.items()]
    lines.append("exported by " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return "\n".join(lines)


def _component(name: str, component: Component) -> list[str]:
    lines = [
        f"{name}: {component.precision}, opset {component.opset}, {component.parameters:,} parameters, "
        f"{_bytes(component.weights.size)}"
    ]
    for role, graph in component.graphs.items():
        lines.append(f"  {role} ({_bytes(graph.file.size)})")
        lines += [f"    in   {_tensor(spec)}" for spec in graph.inputs]
        lines += [f"    out  {_tensor(spec)}" for spec in graph.outputs]
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
            f"  kept in higher precision ({_bytes(quality.promoted_bytes)} more, PSNR without: "
            f"{_decibels(quality.promoted_psnr)}): {', '.join(quality.promoted)}"
        )
    return lines


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # from there on three digits would round to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
