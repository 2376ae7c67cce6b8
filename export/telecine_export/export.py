"""source → bundle: trace each component, stream its weights, write the manifest, then let the bundle appear."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import onnx
import onnx_ir as ir

from telecine.atomic import atomic_folder
from telecine.bundle import Bundle, file_entry, is_bundle
from telecine.errors import RequestError, SourceError
from telecine.manifest import FILE_NAME, FORMAT, Component, FileEntry, Graph, Manifest, Quality, TensorSpec
from telecine.peak_memory import PeakMemory
from telecine_export.checkpoints.joined import Joined
from telecine_export.family import Family, family_of
from telecine_export.fused_qkv import fuse_qkv
from telecine_export.graphs import GraphSpec
from telecine_export.onnxruntime_cpu import for_onnxruntime_cpu
from telecine_export.precision.calibration import Calibration, calibrate
from telecine_export.precision.gate import Gate, Judge, Plans, pass_gate
from telecine_export.precision.plans import plan_components
from telecine_export.precision.policy import Policy
from telecine_export.precision.reference import reference_bundle
from telecine_export.precision.typed import Amax, ComponentPlan, Traces, typed
from telecine_export.source import Source
from telecine_export.tokenizer import save_tokenizer_json
from telecine_export.weights import WeightsWriter

OPSETS = (20, 23)
FUSED = "transformer"  # the component that `fuse` is about
DEFAULT_OPSET = 23
DEFAULT_GATE = Gate()
PLAIN = Policy()
RECORDED_PACKAGES = ("telecine", "torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentReport:
    """What exporting one component took: seconds, bytes of weights, peak anonymous memory in bytes."""

    name: str
    seconds: float
    size: int
    parameters: int
    peak_memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Callbacks of an export; each is called from the exporting thread."""

    started: Callable[[str], None] = lambda component: None
    wrote: Callable[[int], None] = lambda size: None
    finished: Callable[[ComponentReport], None] = lambda report: None


def export_bundle(
    source: Source,
    destination: Path,
    *,
    precision: str = "fp32",
    components: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
    fuse: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    gate: Gate | None = DEFAULT_GATE,
    calibration: Calibration | None = None,
    reference: Path | None = None,
    traces: Traces | None = None,
) -> Bundle:
    """Export every component of a source; the bundle appears whole, in one rename, or not at all.

    `components` has the precision of single components, where it is another than `precision`. What is below float32
    must pass the `gate`: runs next to those of a `reference`, the same source exported at fp32, which is made in a
    temporary folder where none is given; None measures nothing. fp8 is calibrated on the reference too. `traces` are
    kept by a caller that exports several bundles of one source. `fuse` joins the transformer's projections
    (`fused_qkv`).

    Raises:
        SourceError: the source is incomplete, of an unknown family, an option cannot act, or the gate was not passed.
        RequestError: the destination exists (without `overwrite`) or cannot be written, or its disk is full; runs at
            fp32 do not fit this machine's memory.
        BundleError: the reference is not this source at fp32.
    """
    _check_opset(opset, traces)
    family = family_of(source)
    specs = [fuse_qkv(spec) if fuse and spec.component == FUSED else spec for spec in family.graphs(source)]
    plans = plan_components(family.policies, [spec.component for spec in specs], precision, components or {})
    _check_measuring(plans, gate, calibration, reference)
    progress, traces = progress or Progress(), traces or Traces(opset)
    with (
        atomic_folder(destination, overwrite=overwrite, is_ours=is_bundle) as folder,
        _naming_the_disk(destination),
    ):
        writer = BundleWriter(source, family, specs, folder, traces, progress)
        if not _needs_reference(plans, gate):
            writer.write(plans)
        else:
            export = partial(export_bundle, source, precision="fp32", opset=opset, fuse=fuse, traces=traces)
            with reference_bundle(reference, source, specs, folder, export) as exact:
                plans = calibrate(exact, specs, traces, plans, family.trial, calibration or Calibration())
                if gate is None:
                    writer.write(plans)
                else:
                    quality = pass_gate(Judge(exact, family.trial), gate, specs, traces, plans, writer.write)
                    writer.record(quality)
        Bundle.open(folder)  # what cannot be opened does not appear
    return Bundle.open(destination)


class BundleWriter:
    """Writes a bundle into a folder; written again, only the components whose plans changed are."""

    def __init__(
        self,
        source: Source,
        family: Family,
        specs: Sequence[GraphSpec],
        folder: Path,
        traces: Traces,
        progress: Progress,
    ) -> None:
        """What is quick to read comes first: a large model is not traced for nothing."""
        self._source, self._folder, self._traces, self._progress = source, folder, traces, progress
        self._specs = {name: list(group) for name, group in groupby(specs, key=lambda spec: spec.component)}
        tokenizer = folder / "tokenizer" / "tokenizer.json"
        save_tokenizer_json(source.tokenizer, tokenizer, family.tokenizer)
        host, presets = family.host(source), family.presets(source)
        for spec in specs:
            source.checkpoint(spec.checkpoint).close()
        self._written: dict[str, ComponentPlan] = {}
        self._manifest = Manifest(
            format=FORMAT,
            family=family.name,
            variant=family.variant(source),
            pipeline=source.pipeline_class,
            components={},
            tokenizer=file_entry(folder, tokenizer),
            host=host,
            presets=presets,
            versions={name: version(name) for name in RECORDED_PACKAGES},
        )

    def write(self, plans: Plans) -> Bundle:
        """The bundle by these plans."""
        components = dict(self._manifest.components)
        for name, plan in plans.items():
            if self._written.get(name) == plan:
                continue
            shutil.rmtree(self._folder / name, ignore_errors=True)
            components[name] = export_component(
                self._source,
                self._folder,
                self._specs[name],
                precision=plan.precision,
                opset=self._traces.opset,
                progress=self._progress,
                policy=plan.policy,
                kept=plan.kept,
                amax=plan.amax,
                traces=self._traces,
            )
            self._written[name] = plan
        return self._save(dataclasses.replace(self._manifest, components=components))

    def record(self, quality: Quality) -> None:
        """Keep what was measured in the manifest."""
        self._save(dataclasses.replace(self._manifest, quality=quality))

    def _save(self, manifest: Manifest) -> Bundle:
        self._manifest = manifest
        (self._folder / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")
        return Bundle(root=self._folder, manifest=manifest)


def _check_opset(opset: int, traces: Traces | None) -> None:
    if opset not in OPSETS:
        raise SourceError(
            f"opset {opset}",
            expected=f"one of {', '.join(map(str, OPSETS))}",
            fix="Use 23, or 20 for a TensorRT older than 10.14.",
        )
    if traces is not None and traces.opset != opset:
        raise SourceError(
            f"opset {opset} with traces of opset {traces.opset}", expected="one opset", fix="Trace again for another."
        )


def _needs_reference(plans: Plans, gate: Gate | None) -> bool:
    lowered = {plan.precision for plan in plans.values()} - {"fp32"}
    return "fp8" in lowered or (gate is not None and bool(lowered))


def _check_measuring(plans: Plans, gate: Gate | None, calibration: Calibration | None, reference: Path | None) -> None:
    """Refuse what would not act."""
    precisions = {plan.precision for plan in plans.values()}
    for given, acts, what, expected in (
        (calibration, "fp8" in precisions, "a calibration", "a component at fp8"),
        (reference, _needs_reference(plans, gate), "a reference", "fp8, or a component below fp32 and a gate"),
        (gate != DEFAULT_GATE and gate, precisions != {"fp32"}, "a floor or promotion", "a component below fp32"),
    ):
        if given and not acts:
            raise SourceError(
                f"{what} for a bundle at {', '.join(sorted(precisions))}",
                expected=f"{expected}, which it is for",
                fix="Leave it out, or choose another precision.",
            )


@contextmanager
def _naming_the_disk(destination: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into an error that says which disk."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"writing {destination} failed ({error.strerror or error})",
            expected="room for graphs and weights on its disk: at fp32, and for a reference of it, 4 bytes a parameter",
            fix="Free space, or choose a path on another disk. Nothing was left behind.",
        ) from error


def export_component(
    source: Source,
    folder: Path,
    specs: Sequence[GraphSpec],
    *,
    precision: str,
    opset: int,
    progress: Progress,
    policy: Policy = PLAIN,
    kept: Collection[str] = (),
    amax: Mapping[str, Amax] | None = None,
    traces: Traces | None = None,
) -> Component:
    """Export one component's graphs over one weights file, into `folder/COMPONENT/`.

    Without a policy everything has the precision, which few networks survive. See `typed` for `kept`, and for `amax`,
    which is by role here.
    """
    traces = traces or Traces(opset)
    name = specs[0].component
    progress.started(name)
    start = time.monotonic()
    home = folder / name
    home.mkdir()
    graphs: dict[str, Graph] = {}
    with PeakMemory() as memory, Joined(source.checkpoint(specs[0].checkpoint, specs[0].also)) as checkpoint:
        with WeightsWriter(home / "weights.bin", checkpoint, progress=progress.wrote) as weights:
            for spec in specs:
                activations = (amax or {}).get(spec.role, {})
                model = typed(traces.get(spec), precision, policy, kept=kept, amax=activations)
                weights.attach(model)
                path = home / f"{spec.role}.onnx"
                ir.save(model, path)
                beside = None
                own = for_onnxruntime_cpu(model) if precision == "fp32" else None
                if own is not None:
                    beside = home / f"{spec.role}.onnxruntime-cpu.onnx"
                    ir.save(own, beside)
                graphs[spec.role] = _graph(folder, path, model, beside)
            written = weights.finish()
        for role in graphs:
            onnx.checker.check_model(str(home / f"{role}.onnx"))
    report = ComponentReport(
        name=name,
        seconds=time.monotonic() - start,
        size=written.size,
        parameters=written.parameters,
        peak_memory=memory.peak,
    )
    progress.finished(report)
    entry = FileEntry(path=f"{name}/{written.path.name}", size=written.size, sha256=written.sha256)
    return Component(precision=precision, opset=opset, parameters=written.parameters, weights=entry, graphs=graphs)


def _graph(folder: Path, path: Path, model: ir.Model, onnxruntime_cpu: Path | None) -> Graph:
    return Graph(
        file=file_entry(folder, path),
        inputs=tuple(_tensor(value) for value in model.graph.inputs),
        outputs=tuple(_tensor(value) for value in model.graph.outputs),
        onnxruntime_cpu=None if onnxruntime_cpu is None else file_entry(folder, onnxruntime_cpu),
    )


def _tensor(value: ir.Value) -> TensorSpec:
    assert value.name
    assert value.dtype
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)
