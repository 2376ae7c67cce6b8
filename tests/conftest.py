"""Checkpoints and bundles that many tests share, made once a run (and once for all xdist workers)."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.install import install_cuda, install_onnxruntime, install_tensorrt

from telecine.bundle import Bundle
from telecine.manifest import FILE_NAME

ROOT = Path(__file__).parents[1]


def pytest_collection_finish() -> None:
    """Objects of the imported modules stay: without this, every full garbage collection looks through them."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests measured and gave to `record_property("measured", ...)`, from xdist's workers too."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if figures:
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.write_line(str(figure))


def load_script(name: str) -> Any:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`shared(name, make)`: a folder or file that `make(path)` makes once for all workers of a run.

    Exports in `make` share their traces.
    TELECINE_TEST_CACHE names a folder that keeps them between runs, for work on the runtime: empty it after a change
    to the exporter.
    """
    cache = os.environ.get("TELECINE_TEST_CACHE")
    if cache:
        root = Path(cache)
        root.mkdir(parents=True, exist_ok=True)
    else:
        root = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            root = root.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        target, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                # Imported here: tests of the runtime run where torch is not installed.
                from traces import shared_traces

                shutil.rmtree(target, ignore_errors=True)
                with shared_traces(get):
                    make(target)
                done.touch()
        return target

    return get


@pytest.fixture(scope="session")
def tiny_source(shared: Callable[..., Path]) -> Path:
    """A tiny LTX-Video checkpoint with a timestep-conditioned decoder and dynamic shift."""
    return shared("tiny-source", load_script("make_tiny_checkpoint").make_tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(shared: Callable[..., Path], tiny_source: Path) -> Path:
    """`tiny_source`, exported at fp32 and the default opset. Read only: copy it before you change it."""
    return shared("tiny-bundle", lambda path: _export(tiny_source, path))


@pytest.fixture(scope="session")
def tiny_bundle_on_main_graphs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bundle` without the graphs that are for ONNX Runtime's CPU provider alone: what engines are made of."""
    bundle = tmp_path_factory.mktemp("main-graphs") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = Bundle.open(bundle).manifest
    components = {
        name: dataclasses.replace(
            part,
            graphs={role: dataclasses.replace(graph, onnxruntime_cpu=None) for role, graph in part.graphs.items()},
        )
        for name, part in manifest.components.items()
    }
    (bundle / FILE_NAME).write_text(dataclasses.replace(manifest, components=components).dump())
    return bundle


@pytest.fixture(scope="session")
def plain_source(shared: Callable[..., Path]) -> Path:
    """A tiny checkpoint whose decoder takes no timestep (LTX-Video 0.9.0), with another seed."""
    make = load_script("make_tiny_checkpoint").make_tiny_checkpoint
    return shared("plain-source", lambda path: make(path, seed=1, timestep_conditioning=False))


@pytest.fixture(scope="session")
def plain_bundle(shared: Callable[..., Path], plain_source: Path) -> Path:
    """`plain_source`, exported. Read only."""
    return shared("plain-bundle", lambda path: _export(plain_source, path))


@pytest.fixture(scope="session")
def noisy_source(shared: Callable[..., Path]) -> Path:
    """A tiny checkpoint whose decoder injects noise (LTX-Video 0.9.1)."""
    make = load_script("make_tiny_checkpoint").make_tiny_checkpoint
    return shared("noisy-source", lambda path: make(path, seed=2, inject_noise=True))


@pytest.fixture(scope="session")
def noisy_bundle(shared: Callable[..., Path], noisy_source: Path) -> Path:
    """`noisy_source`, exported. Read only."""
    return shared("noisy-bundle", lambda path: _export(noisy_source, path))


@pytest.fixture(scope="session")
def tiny_upscaler(shared: Callable[..., Path]) -> Path:
    """A spatial upsampler for `tiny_source`, as an LTXLatentUpsamplePipeline."""
    return shared("tiny-upscaler", load_script("make_tiny_checkpoint").make_tiny_upscaler)


@pytest.fixture(scope="session")
def upscaler_bundle(shared: Callable[..., Path], tiny_source: Path, tiny_upscaler: Path, tiny_bundle: Path) -> Path:
    """`tiny_source` with `tiny_upscaler`, exported. Read only."""
    return shared("upscaler-bundle", lambda path: export_with_upscaler(tiny_source, path, tiny_upscaler, tiny_bundle))


@pytest.fixture(scope="session")
def temporal_upscaler(shared: Callable[..., Path]) -> Path:
    """A temporal upsampler for `plain_source`."""
    make = load_script("make_tiny_checkpoint").make_tiny_upscaler
    config = {"spatial_upsample": False, "temporal_upsample": True}
    return shared("temporal-upscaler", lambda path: make(path, seed=1, timestep_conditioning=False, **config))


@pytest.fixture(scope="session")
def temporal_bundle(
    shared: Callable[..., Path], plain_source: Path, temporal_upscaler: Path, plain_bundle: Path
) -> Path:
    """`plain_source` with `temporal_upscaler`, exported. Read only."""
    return shared(
        "temporal-bundle", lambda path: export_with_upscaler(plain_source, path, temporal_upscaler, plain_bundle)
    )


@pytest.fixture(scope="session")
def cogvideox_precisions(shared: Callable[..., Path]) -> Callable[[str], Path]:
    """`cogvideox_precisions("fp16")`: the tiny CogVideoX in the style of 2b at a precision, of one trace. Read only.

    Ungated: what its precisions cost is a test of its own.
    """

    def make(folder: Path) -> None:
        from telecine_export.export import export_bundle
        from telecine_export.precision.typed import Traces
        from telecine_export.source import open_source

        source, traces = open_source(str(_cogvideox_source(shared, "2b"))), Traces(23)
        for precision in ("fp32", "fp16", "bf16", "fp8"):
            reference = folder / "fp32" if precision == "fp8" else None
            export_bundle(
                source, folder / precision, precision=precision, gate=None, reference=reference, traces=traces
            )

    return lambda precision: shared("cogvideox-2b-bundles", make) / precision


def _cogvideox_source(shared: Callable[..., Path], style: str) -> Path:
    make = load_script("make_tiny_cogvideox").make_tiny_cogvideox
    return shared(f"cogvideox-{style}-source", lambda path: make(path, style=style))


@pytest.fixture(scope="session")
def cogvideox(
    shared: Callable[..., Path], cogvideox_precisions: Callable[[str], Path]
) -> Callable[..., tuple[Path, Path]]:
    """`cogvideox("5b")`: a tiny checkpoint in the style of a release, and its bundle. Read only.

    All styles have the same T5 and the same VAE's weights: those are traced once.
    """

    def get(style: str) -> tuple[Path, Path]:
        source, first = _cogvideox_source(shared, style), cogvideox_precisions("fp32")
        if style == "2b":
            return source, first
        return source, shared(f"cogvideox-{style}-bundle", lambda path: _export_style(source, path, first))

    return get


def _export_style(source: Path, destination: Path, first: Path) -> None:
    from telecine_export.source import open_source

    _export_but(open_source(str(source)), destination, first, anew={"transformer"})


@pytest.fixture(scope="session")
def ltx2_sources(shared: Callable[..., Path]) -> Callable[[str], tuple[Path, Path]]:
    """`ltx2_sources("2.3")`: a tiny LTX-2 checkpoint in the style of a release, and an upscaler for it."""

    def get(style: str) -> tuple[Path, Path]:
        script = load_script("make_tiny_ltx2")
        return (
            shared(f"ltx2-{style}-source", lambda path: script.make_tiny_ltx2(path, style=style)),
            shared(f"ltx2-{style}-upscaler", lambda path: script.make_tiny_ltx2_upscaler(path, style=style)),
        )

    return get


@pytest.fixture(scope="session")
def ltx2(
    shared: Callable[..., Path], ltx2_sources: Callable[[str], tuple[Path, Path]]
) -> Callable[[str], tuple[Path, Path, Path]]:
    """`ltx2("2.3")`: as `ltx2_sources`, and the bundle of both. Read only."""

    def get(style: str) -> tuple[Path, Path, Path]:
        source, upscaler = ltx2_sources(style)
        return source, upscaler, shared(f"ltx2-{style}-bundle", lambda path: _export(source, path, upscaler))

    return get


@pytest.fixture(scope="session")
def ltx2_precisions(
    shared: Callable[..., Path], ltx2: Callable[[str], tuple[Path, Path, Path]]
) -> Callable[[str, str], Path]:
    """`ltx2_precisions("fp16", "2.3")`: `ltx2`'s bundle at another precision, ungated. Read only."""

    def get(precision: str, style: str) -> Path:
        source, upscaler, exact = ltx2(style)
        lowered = {"precision": precision, "gate": None, "reference": exact if precision == "fp8" else None}
        return shared(f"ltx2-{style}-{precision}-bundle", lambda path: _export(source, path, upscaler, **lowered))

    return get


@pytest.fixture(scope="session")
def demo_source() -> Path:
    """The repository's own trained checkpoint: fp16, a decoder of 0.9.5's kind, dynamic shift, an upsampler beside."""
    return ROOT / "scripts" / "demo_model" / "checkpoint"


@pytest.fixture(scope="session")
def demo_bundles(shared: Callable[..., Path]) -> Path:
    """The repository's demo checkpoint at every precision, of one trace: folders fp32, fp16, bf16, fp8. Read only."""

    def make(folder: Path) -> None:
        load_script("precision_table").export_all(folder)

    return shared("demo-bundles", make)


@pytest.fixture(scope="session")
def demo_bundle(demo_bundles: Path) -> Path:
    """`demo_source`, exported at fp32. Read only."""
    return demo_bundles / "fp32"


@pytest.fixture(scope="session")
def demo_upscaler_bundle(shared: Callable[..., Path], demo_source: Path, demo_bundle: Path) -> Path:
    """`demo_source` with its upsampler, exported. Read only."""
    upscaler = demo_source / "latent_upsampler"
    return shared("demo-upscaler-bundle", lambda path: export_with_upscaler(demo_source, path, upscaler, demo_bundle))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDouble]:
    """A CUDA double with one GPU of compute capability 8.9 in place of cuda-bindings. What CUDA or TensorRT leaves
    undefined, and memory that is not freed, fails the test."""
    cuda = install_cuda(monkeypatch, CudaDouble())
    yield cuda
    assert cuda.violations == []
    assert set(cuda.leftovers().values()) == {0}, cuda.leftovers()


@pytest.fixture
def tensorrt(gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`tensorrt("tensorrt_rtx")`: a TensorRT double in place of that package (default: `tensorrt` 11)."""
    return lambda *arguments: install_tensorrt(monkeypatch, gpu, *arguments)


@pytest.fixture
def onnxruntime_gpu(gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`onnxruntime_gpu(inputs_on_host=[...])`: a double of onnxruntime-gpu in place of ONNX Runtime."""
    return lambda **settings: install_onnxruntime(monkeypatch, gpu, **settings)


def edit_bundle(bundle: Path, copy: Path, *, host: dict[str, Any] | None = None, **fields: Any) -> Path:
    """`copy` of a bundle: the same files under a manifest with other values."""
    shutil.copytree(bundle, copy)
    manifest = Bundle.open(bundle).manifest
    changed = dataclasses.replace(manifest, host=manifest.host | (host or {}), **fields)
    (copy / FILE_NAME).write_text(changed.dump())
    return copy


@pytest.fixture
def edited_bundle(tmp_path: Path) -> Callable[..., Path]:
    """`edited_bundle(bundle, host={...}, presets={...})`: a copy whose manifest has other values."""
    return lambda bundle, **changes: edit_bundle(bundle, tmp_path / "edited", **changes)


@pytest.fixture(scope="module")
def kept_edited_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`edited_bundle` for all tests of a module."""
    return lambda bundle, **changes: edit_bundle(bundle, tmp_path_factory.mktemp("bundles") / "edited", **changes)


def _export(source: Path, destination: Path, upscaler: Path | None = None, **options: Any) -> None:
    # Imported here: see `shared`.
    from telecine_export.export import export_bundle
    from telecine_export.families.upscaler import with_upscaler
    from telecine_export.source import open_source

    opened = open_source(str(source))
    export_bundle(opened if upscaler is None else with_upscaler(opened, str(upscaler)), destination, **options)


def export_with_upscaler(source: Path, destination: Path, upscaler: Path, exported: Path) -> None:
    """`telecine export --upscaler`, but what the bundle `exported` has is copied from there: tracing takes a while."""
    from telecine_export.families.upscaler import with_upscaler
    from telecine_export.source import open_source

    _export_but(with_upscaler(open_source(str(source)), str(upscaler)), destination, exported)


def _export_but(opened: Any, destination: Path, exported: Path, anew: Collection[str] = ()) -> None:
    """Export a source, but copy what the bundle `exported` has too, and what is not to be made `anew`."""
    from telecine_export import export

    components = Bundle.open(exported).manifest.components

    def copy_or_export(opened: Any, folder: Path, specs: Any, **options: Any) -> Any:
        name = specs[0].component
        if name not in components or name in anew:
            return export_component(opened, folder, specs, **options)
        shutil.copytree(exported / name, folder / name)
        return components[name]

    export_component = export.export_component
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_component", copy_or_export)
        export.export_bundle(opened, destination)
