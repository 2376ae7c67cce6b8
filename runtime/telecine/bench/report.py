"""A benchmark's results as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGES = ("text", "step", "step_network", "step_host", "decode", "sound", "total", "step_cpu", "total_cpu")


def as_text(results: Mapping[str, Any]) -> str:
    """Tables of what was measured, a competitor a column."""
    machine, settings = results["machine"], results["settings"]
    lines = [
        f"{machine['processor']}, {settings['threads']} threads, {machine['cores']} cores, "
        f"load {machine['load_average']:.1f}",
        f"{settings['width']}x{settings['height']}x{settings['num_frames']}, {settings['num_inference_steps']} steps, "
        f"guidance {settings['guidance_scale']:g}; medians of {settings['repeats']}, quartiles in brackets",
        "",
        *_stages(results),
        *_fresh(results.get("fresh", {})),
    ]
    for name, size in results.get("installed", {}).items():
        lines.append(f"installed, {name}: {size['bytes'] / 1e6:.0f} MB in {len(size['packages'])} packages")
    if "roofline" in results:
        lines += _roofline(results["roofline"])
    for name, seconds in results.get("host", {}).items():
        if name != "shape":
            lines.append(f"host step at {results['host']['shape']}, {name}: {seconds['median'] * 1e3:.2f} ms")
    for name, grown in results.get("sweep", {}).items():
        exponents = {key: value for key, value in grown["exponents"].items() if value is not None}
        fitted = ", ".join(f"{key} ~ tokens^{value:.2f}" for key, value in exponents.items())
        lines.append(f"growth, {name}: {fitted or 'too few sizes'}")
    return "\n".join(lines)


def _stages(results: Mapping[str, Any]) -> list[str]:
    stages, ratios = results["stages"], results["times_as_fast_as"]
    rows = [["seconds", *stages, *(f"{next(iter(stages))} / {name}" for name in ratios)]]
    for stage in (each for each in STAGES if all(each in told for told in stages.values())):
        spreads = [each[stage] for each in stages.values()]
        cells = [f"{spread['median']:.4f} ({spread['low']:.4f}-{spread['high']:.4f})" for spread in spreads]
        times = [f"{each[stage]:.2f} x" if stage in each else "" for each in ratios.values()]
        rows.append([stage, *cells, *times])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fresh(fresh: Mapping[str, Any]) -> list[str]:
    return [
        f"fresh process, {name}: {told['start_up']['median']:.2f} s to the first step, "
        f"{told['first_step']['median']:.2f} s to its end, "
        f"{told['total']['median']:.2f} s to the video, {told['peak_memory']['median'] / 1e6:.0f} MB at most"
        + _on_device(told)
        for name, told in fresh.items()
    ]


def _on_device(told: Mapping[str, Any]) -> str:
    if "peak_device_memory" not in told:
        return ""
    return f", {told['peak_device_memory']['median'] / 1e6:.0f} MB of the GPU"


def _roofline(roofline: Mapping[str, Any]) -> list[str]:
    reached = ", ".join(f"{name} {part:.0%}" for name, part in roofline["reached"].items())
    return [
        f"machine: {roofline['rates']['matmul'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{roofline['rates']['copy'] / 1e9:.1f} GB/s in copies",
        f"a step has {roofline['step_flops'] / 1e9:.1f} GFLOP; fraction of the matrix rate: {reached}",
    ]
