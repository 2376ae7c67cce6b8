"""Bundles to build from, a machine with a GPU, and TensorRT 10 and 11 as doubles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.install import install_cuda, install_tensorrt

from telecine.bundle import Bundle


@pytest.fixture(scope="session")
def precision_bundle(
    shared: Callable[..., Path], tiny_source: Path, tiny_upscaler: Path, upscaler_bundle: Path
) -> Callable[[str], Bundle]:
    """`precision_bundle("fp16")`: `tiny_source` with `tiny_upscaler`, every component at one precision. Read only."""

    def get(precision: str) -> Bundle:
        if precision == "fp32":
            return Bundle.open(upscaler_bundle)
        return Bundle.open(shared("upscaler-bundles", export_all) / precision)

    def export_all(folder: Path) -> None:
        """Of one trace, which takes most of the time."""
        from telecine_export.export import export_bundle
        from telecine_export.families.upscaler import with_upscaler
        from telecine_export.precision.typed import Traces
        from telecine_export.source import open_source

        source: Any = with_upscaler(open_source(str(tiny_source)), str(tiny_upscaler))
        traces = Traces(23)
        for precision in ("fp16", "bf16", "fp8"):
            reference = upscaler_bundle if precision == "fp8" else None
            export_bundle(
                source, folder / precision, precision=precision, gate=None, reference=reference, traces=traces
            )

    return get


@pytest.fixture
def machine_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], CudaDouble]:
    """`machine_gpu(89)`: CUDA finds a GPU of that compute capability; with None a driver and no GPU."""

    def set_gpu(capability: int | None) -> CudaDouble:
        found = (f"{capability // 10}.{capability % 10}",) if capability else ()
        return install_cuda(monkeypatch, CudaDouble(capabilities=found))

    return set_gpu


@pytest.fixture
def tensorrt_double(
    monkeypatch: pytest.MonkeyPatch, machine_gpu: Callable[[int], CudaDouble]
) -> Iterator[Callable[[str], Any]]:
    """`tensorrt_double("10.14.1")`: `import tensorrt` gives the double of that version, on a machine with an H100."""
    machines: list[CudaDouble] = []

    def install(version: str) -> Any:
        machines.append(machine_gpu(90))
        return install_tensorrt(monkeypatch, machines[-1], "tensorrt", version)

    yield install
    assert [violation for cuda in machines for violation in cuda.violations] == []
