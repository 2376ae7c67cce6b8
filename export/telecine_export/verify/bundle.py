"""A bundle against its source under torch, stage by stage: which stage is the first to diverge?

The components come first, each by itself on seeded random inputs of sizes that were not traced; then one whole run
next to diffusers' pipeline with the same seed. A stage that fails does not keep the later ones from running.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import onnx

from telecine.bundle import Bundle
from telecine.errors import RequestError, SourceError, TelecineError
from telecine.families.names import TIED_NAMES
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.checkpoints.joined import Joined
from telecine_export.families.weightless import WEIGHTLESS
from telecine_export.family import Family, family_of
from telecine_export.graphs import GraphSpec
from telecine_export.precision.quantise import SCALE_SUFFIX
from telecine_export.source import Source
from telecine_export.verify.checks import Array, BundleModels, FamilyChecks, Record, quiet
from telecine_export.verify.cogvideox import COGVIDEOX
from telecine_export.verify.comparison import Pair, StageReport, stage_report
from telecine_export.verify.ltx2 import LTX2
from telecine_export.verify.ltx_video import LTX_VIDEO

CHECKS: Mapping[str, FamilyChecks] = {"ltx-video": LTX_VIDEO, "cogvideox": COGVIDEOX, "ltx-2": LTX2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` found; `dataclasses.asdict` of it is JSON. `first_divergence` is a stage's name, or None."""

    bundle: str
    source: str
    passed: bool
    first_divergence: str | None
    seconds: float
    stages: tuple[StageReport, ...]


def verify_bundle(bundle: Path, source: Source, *, stages: Sequence[str] | None = None) -> Report:
    """Compare every stage, or those named, and report them in the order of the run.

    A single component's stage needs the memory of its graph, then of its torch module; the stages of the whole run
    (all are made by one) need that of all graphs, then of all modules, at fp32.

    A stage that comes through a component below fp32 is held to a PSNR; what it should cost, the export measured.

    Raises:
        BundleError: the bundle is missing, damaged or edited.
        SourceError: the source is another model than the bundle's, incomplete, or torch cannot run it.
        RequestError: an unknown stage.
    """
    start = time.perf_counter()
    opened = Bundle.open(bundle)
    family = family_of(source)
    _check_family(opened, source, family)
    checks = CHECKS[family.name]
    selected = _select(checks.stages(opened), stages)
    _check_optional(opened, source, selected.intersection(checks.optional))
    _check_model(opened, source, family)
    with quiet():
        reports = [_component(opened, source, checks, name) for name in checks.components if name in selected]
        if not selected.isdisjoint(checks.run_stages):
            reports += [report for report in _run(opened, source, checks) if report.name in selected]
    first = next((report.name for report in reports if not report.passed), None)
    return Report(
        bundle=str(bundle),
        source=str(source.root),
        passed=first is None,
        first_divergence=first,
        seconds=time.perf_counter() - start,
        stages=tuple(reports),
    )


def as_text(report: Report) -> str:
    """A table of stages, what is to say about some, and the verdict on the last line."""
    rows: list[tuple[str, ...]] = [
        ("stage", "", "max abs", "mean abs", "cosine", "PSNR dB", "tolerance", "cases", "seconds")
    ]
    rows += [_row(stage) for stage in report.stages]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{report.bundle} against {report.source}"]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    lines += [f"{stage.name}: {stage.detail}" for stage in report.stages if stage.detail]
    if report.first_divergence is None:
        names = ", ".join(stage.name for stage in report.stages)
        lines.append(f"verified: {names} ({report.seconds:.0f} s)")
    else:
        lines.append(f"diverges first at {report.first_divergence}")
    return "\n".join(lines)


def _row(stage: StageReport) -> tuple[str, ...]:
    return (
        stage.name,
        "ok" if stage.passed else "FAILED",
        _cell(stage.max_abs, ".2e"),
        _cell(stage.mean_abs, ".2e"),
        _cell(stage.cosine, ".8f"),
        _cell(stage.psnr, ".1f"),
        _cell(stage.tolerance, ".1e") if stage.psnr_floor is None else f">= {stage.psnr_floor:g} dB",
        str(len(stage.cases) or "-"),
        _cell(stage.seconds, ".1f"),
    )


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _select(known: Sequence[str], asked: Sequence[str] | None) -> frozenset[str]:
    unknown = [name for name in asked or () if name not in known]
    if unknown:
        raise RequestError(
            f"stage {', '.join(unknown)}",
            expected=f"some of {', '.join(known)}",
            fix="Name stages as listed, or none for all.",
        )
    return frozenset(asked or known)


def _component(bundle: Bundle, source: Source, checks: FamilyChecks, name: str) -> StageReport:
    start = time.perf_counter()
    try:
        pairs = checks.components[name](bundle, source)
    except SourceError:
        raise
    except TelecineError as error:
        return StageReport(name=name, passed=False, seconds=time.perf_counter() - start, detail=str(error))
    return stage_report(name, pairs, seconds=time.perf_counter() - start, precision=checks.precision(bundle, name))


def _run(bundle: Bundle, source: Source, checks: FamilyChecks) -> list[StageReport]:
    """One run on either side, one after the other, compared stage by stage."""
    start = time.perf_counter()
    got: Record = {}
    expected: Record = {}
    models = BundleModels(bundle)
    problem = "the run has no such values"
    try:
        checks.bundle_run(models, source, got)
    except SourceError:
        raise
    except TelecineError as error:
        problem = f"not reached: {error}"
    finally:
        models.close()
    if not got:  # diffusers' run would have nothing to be compared with
        return [StageReport(name=name, passed=False, detail=problem) for name in checks.run_stages]
    checks.torch_run(source, expected)
    reports: list[StageReport] = []
    for name in checks.run_stages:
        seconds = None if reports else time.perf_counter() - start
        precision = checks.precision(bundle, name)
        reports.append(_run_stage(name, got.get(name, {}), expected[name], problem, seconds, precision))
    return reports


def _run_stage(
    name: str,
    got: Mapping[str, Array],
    expected: Mapping[str, Array],
    problem: str,
    seconds: float | None,
    precision: str,
) -> StageReport:
    """Compare what was reached; `problem` says why the rest was not."""
    pairs = [
        Pair(case=case, shapes={case: values.shape}, got=got[case], expected=values)
        for case, values in expected.items()
        if case in got
    ]
    if not pairs:
        return StageReport(name=name, passed=False, seconds=seconds, detail=problem)
    report = stage_report(name, pairs, seconds=seconds, precision=precision)
    missing = [case for case in expected if case not in got]
    if missing and report.passed:
        return dataclasses.replace(report, passed=False, detail=f"{missing[0]}: {problem}")
    return report


def _check_family(bundle: Bundle, source: Source, family: Family) -> None:
    manifest = bundle.manifest
    for what, got, expected in (
        ("a bundle of family", manifest.family, family.name),
        ("exported from a", manifest.pipeline, source.pipeline_class),
    ):
        if got != expected:
            raise SourceError(
                f"{bundle.root} is {what} {got}",
                expected=f"{expected}, as {source.root} is",
                fix="Verify a bundle against the source that it was exported from.",
            )


def _check_optional(bundle: Bundle, source: Source, selected: Collection[str]) -> None:
    """Refuse to verify what was added to the source at export, where it is not added now."""
    for name in selected:
        if name not in source.components:
            raise SourceError(
                f"{bundle.root} has a {name}, and {source.root} none",
                expected="what it was exported from",
                fix="Pass --upscaler, or name the other stages with --stage.",
            )


def _check_model(bundle: Bundle, source: Source, family: Family) -> None:
    """Refuse a source whose graphs would have other inputs, outputs or weights than the bundle's.

    Raises:
        BundleError: a component is missing.
        SourceError: a tensor of the bundle does not fit the source's configuration or checkpoint.
    """
    for name, specs in groupby(family.graphs(source), key=lambda spec: spec.component):
        if name in WEIGHTLESS and name not in bundle.manifest.components:
            continue  # an older bundle
        bundle.component(name)
        for spec in specs:
            with Joined(source.checkpoint(spec.checkpoint, spec.also)) as checkpoint:  # it may be of --fuse-qkv
                _check_graph(bundle, spec, checkpoint)


def _check_graph(bundle: Bundle, spec: GraphSpec, checkpoint: Checkpoint) -> None:
    graph = bundle.graph(spec.component, spec.role)
    got = {tensor.name: _spelled(tensor.shape) for tensor in (*graph.inputs, *graph.outputs)}
    free = {(name, axis): symbol for name, axis, symbol in spec.untied}
    expected = {name: _spelled(shape) for name, shape in spec.outputs.items()}
    for name, sample in spec.sample.items():
        named = {axis: free.get((name, axis), symbol) for axis, symbol in spec.axes[name].items()}
        expected[name] = _spelled([named.get(axis, size) for axis, size in enumerate(sample.shape)])
    for name in got | expected:
        if got.get(name) != expected.get(name):
            _refuse(bundle, spec, name, got.get(name, "missing"), expected.get(name, "no such tensor"))
    model = onnx.load(str(bundle.path(graph.file)), load_external_data=False)
    scales = {
        weight.name + SCALE_SUFFIX
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT8E4M3FN
    }
    for weight in model.graph.initializer:
        if weight.data_location != onnx.TensorProto.EXTERNAL or weight.name in scales:
            continue
        name = weight.name
        if name not in checkpoint and TIED_NAMES.get(name, name) in checkpoint:
            name = TIED_NAMES[name]
        shape, stored = checkpoint.shape(name), tuple(weight.dims)
        if shape not in (stored, stored[::-1]):  # linear layers are stored transposed
            _refuse(bundle, spec, name, _spelled(stored), _spelled(shape))


def _refuse(bundle: Bundle, spec: GraphSpec, name: str, got: str, expected: str) -> None:
    raise SourceError(
        f"{name} of {bundle.root}'s {spec.component} is {got}",
        expected=f"{expected}, by the source's configuration and checkpoint",
        fix="Verify a bundle against the source that it was exported from.",
    )


def _spelled(shape: Sequence[int | str]) -> str:
    return f"({', '.join(str(size).replace(' ', '') for size in shape)})"
