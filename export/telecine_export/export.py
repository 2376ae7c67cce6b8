"""source → bundle: trace each component, stream its weights, write the manifest, then let the bundle appear."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import onnx
import onnx_ir as ir

from telecine.atomic import atomic_folder
from telecine.bundle import Bundle, is_bundle, sha256
from telecine.errors import RequestError, SourceError
from telecine.manifest import FILE_NAME, FORMAT, Component, FileEntry, Graph, Manifest, TensorSpec
from telecine_export.checkpoints.joined import Joined
from telecine_export.families import family_of
from telecine_export.fused_qkv import fuse_qkv
from telecine_export.graphs import GraphSpec
from telecine_export.memory import PeakMemory
from telecine_export.source import Source
from telecine_export.tokenizer import save_tokenizer_json
from telecine_export.trace import trace
from telecine_export.weights import WeightsWriter

# What a whole bundle may be exported at. `export_component` takes every precision of `graphs.PRECISIONS`, but which
# parts of a model survive half precision is a policy that does not exist yet.
BUNDLE_PRECISIONS = ("fp32",)
OPSETS = (20, 23)
FUSED = "transformer"  # the component that `fuse` is about
DEFAULT_OPSET = 23
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
    opset: int = DEFAULT_OPSET,
    fuse: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export every component of a source; the bundle appears whole, in one rename, or not at all.

    `fuse` joins the transformer's projections (`fused_qkv`).

    Raises:
        SourceError: the source is incomplete, of an unknown family, or an option cannot act.
        RequestError: the destination exists (without `overwrite`) or cannot be written, or its disk is full.
    """
    _check_options(precision, opset)
    family = family_of(source)
    progress = progress or Progress()
    with (
        atomic_folder(destination, overwrite=overwrite, is_ours=is_bundle) as folder,
        _naming_the_disk(destination),
    ):
        # What is quick to read comes first: a large model is not traced for nothing.
        tokenizer = folder / "tokenizer" / "tokenizer.json"
        save_tokenizer_json(source.tokenizer, tokenizer)
        host, presets = family.host(source), family.presets(source)
        specs = [fuse_qkv(spec) if fuse and spec.component == FUSED else spec for spec in family.graphs(source)]
        for spec in specs:
            source.checkpoint(spec.checkpoint).close()
        components = {
            name: export_component(source, folder, list(group), precision=precision, opset=opset, progress=progress)
            for name, group in groupby(specs, key=lambda spec: spec.component)
        }
        manifest = Manifest(
            format=FORMAT,
            family=family.name,
            variant=family.variant(source),
            pipeline=source.pipeline_class,
            components=components,
            tokenizer=_entry(folder, tokenizer),
            host=host,
            presets=presets,
            versions={name: version(name) for name in RECORDED_PACKAGES},
        )
        (folder / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")
        Bundle.open(folder)  # what cannot be opened does not appear
    return Bundle.open(destination)


def _check_options(precision: str, opset: int) -> None:
    if precision not in BUNDLE_PRECISIONS:
        raise SourceError(
            f"precision {precision}", expected=f"one of {', '.join(BUNDLE_PRECISIONS)}", fix="Export at fp32."
        )
    if opset not in OPSETS:
        raise SourceError(
            f"opset {opset}",
            expected=f"one of {', '.join(map(str, OPSETS))}",
            fix="Use 23, or 20 for a TensorRT older than 10.14.",
        )


@contextmanager
def _naming_the_disk(destination: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into an error that says which disk."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"writing {destination} failed ({error.strerror or error})",
            expected="room for graphs and weights on its disk: at fp32, 4 bytes a parameter",
            fix="Free space, or choose a path on another disk. Nothing was left behind.",
        ) from error


def export_component(
    source: Source, folder: Path, specs: Sequence[GraphSpec], *, precision: str, opset: int, progress: Progress
) -> Component:
    """Export one component's graphs over one weights file, into `folder/COMPONENT/`."""
    name = specs[0].component
    progress.started(name)
    start = time.monotonic()
    home = folder / name
    home.mkdir()
    graphs: dict[str, Graph] = {}
    with PeakMemory() as memory, Joined(source.checkpoint(specs[0].checkpoint)) as checkpoint:
        with WeightsWriter(home / "weights.bin", checkpoint, progress=progress.wrote) as weights:
            for spec in specs:
                model = trace(spec, precision=precision, opset=opset)
                weights.attach(model)
                path = home / f"{spec.role}.onnx"
                ir.save(model, path)
                graphs[spec.role] = _graph(folder, path, model)
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


def _graph(folder: Path, path: Path, model: ir.Model) -> Graph:
    return Graph(
        file=_entry(folder, path),
        inputs=tuple(_tensor(value) for value in model.graph.inputs),
        outputs=tuple(_tensor(value) for value in model.graph.outputs),
    )


def _tensor(value: ir.Value) -> TensorSpec:
    assert value.name
    assert value.dtype
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)


def _entry(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256(path))
