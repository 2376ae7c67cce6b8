"""What `telecine build` prints: what it is about to build, and what it built."""

from __future__ import annotations

from telecine.axes import parse_rule
from telecine.engine import Sidecar
from telecine.inspection import show_bytes
from telecine.manifest import TensorSpec
from telecine_engines.build import BuildReport, Planned
from telecine_engines.planner import GraphPlan


def as_text(planned: Planned, specs: dict[tuple[str, str], tuple[TensorSpec, ...]]) -> str:
    """The plans in lines; `specs` are the inputs of each graph, whose axes name the sizes."""
    lines = [f"workloads: {', '.join(map(str, planned.workloads))}"]
    for plan, activations in zip(planned.plans, planned.activations, strict=True):
        lines.append(_headline(plan, activations))
        lines += [f"  profile {number}: {_axes(plan, number, specs)}" for number in range(len(plan.profiles))]
    return "\n".join(lines)


def _headline(plan: GraphPlan, activations: int | None) -> str:
    name = f"{plan.component}.{plan.role} {plan.precision} for {plan.target.name}"
    if plan.done is not None:
        return f"{name}: built already, {show_bytes(plan.done.plan_size)}"
    assert activations is not None
    return (
        f"{name}: about {show_bytes(plan.expected_bytes)}, and at most {show_bytes(activations)} of activations "
        "at the largest size before fusion"
    )


def _axes(plan: GraphPlan, number: int, specs: dict[tuple[str, str], tuple[TensorSpec, ...]]) -> str:
    """`tokens 576..9072 (8064)`: the sizes of each named axis, and the one that kernels are chosen for."""
    seen: dict[str, str] = {}
    for spec in specs[plan.component, plan.role]:
        shapes = plan.profiles[number][spec.name]
        for rule, low, usual, high in zip(spec.shape, shapes.min, shapes.opt, shapes.max, strict=True):
            if isinstance(rule, str):
                scale, symbol, offset = parse_rule(rule)
                least, opt, most = ((size - offset) // scale for size in (low, usual, high))
                seen[symbol] = f"{symbol} {least}" if least == most else f"{symbol} {least}..{most} ({opt})"
    return ", ".join(seen.values())


def built_text(sidecar: Sidecar) -> str:
    """One line about a plan that was just built."""
    most = ", ".join(f"{count} {dtype}" for dtype, count in list(sidecar.precisions.items())[:4])
    return (
        f"{sidecar.component}.{sidecar.role} for {sidecar.target}: {show_bytes(sidecar.plan_size)} in "
        f"{sidecar.build_seconds:g} s, peak memory {show_bytes(sidecar.build_peak_bytes)}; "
        f"{sidecar.layers} layers, tensors: {most}"
    )


def purpose_text(report: BuildReport) -> list[str]:
    """What the plans of a build are for, a line a target."""
    sidecars = {sidecar.target: sidecar for sidecar in report.sidecars.values()}
    return [
        f"{target}: opens on GPUs of compute capability {' or '.join(sidecar.compute_capabilities)}"
        f"{' and others of its level' if sidecar.hardware_compatibility != 'NONE' else ''}, {sidecar.platform}, "
        f"with {sidecar.library} {sidecar.library_version}"
        for target, sidecar in sidecars.items()
    ]
