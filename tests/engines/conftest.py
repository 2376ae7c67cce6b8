"""Bundles to build from, a machine with a GPU, and TensorRT 10 and 11 as doubles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.tensorrt_builder import make_tensorrt

from telecine.bundle import Bundle


@pytest.fixture(scope="session")
def precision_bundle(
    shared: Callable[..., Path], tiny_source: Path, tiny_upscaler: Path, upscaler_bundle: Path
) -> Callable[[str], Bundle]:
    """`precision_bundle("fp16")`: `tiny_source` with `tiny_upscaler`, every component at one precision. Read only."""

    def get(precision: str) -> Bundle:
        if precision == "fp32":
            return Bundle.open(upscaler_bundle)
        return Bundle.open(shared(f"upscaler-bundle-{precision}", lambda path: export(path, precision)))

    def export(path: Path, precision: str) -> None:
        from telecine_export.export import export_bundle
        from telecine_export.source import open_source
        from telecine_export.upscaler import with_upscaler

        source: Any = with_upscaler(open_source(str(tiny_source)), str(tiny_upscaler))
        reference = upscaler_bundle if precision == "fp8" else None
        export_bundle(source, path, precision=precision, gate=None, reference=reference)

    return get


@pytest.fixture
def machine_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`machine_gpu(89)`: cuda-bindings find a GPU of that compute capability; with None a driver and no GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    attributes, success = runtime.cudaDeviceAttr, runtime.cudaError_t.cudaSuccess

    def set_gpu(capability: int | None) -> None:
        parts = {
            attributes.cudaDevAttrComputeCapabilityMajor: (capability or 0) // 10,
            attributes.cudaDevAttrComputeCapabilityMinor: (capability or 0) % 10,
        }
        count = (success, 1) if capability else (runtime.cudaError_t.cudaErrorNoDevice, None)
        monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (success, 13000))
        monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: count)
        monkeypatch.setattr(runtime, "cudaDeviceGetAttribute", lambda attribute, device: (success, parts[attribute]))

    return set_gpu


@pytest.fixture
def tensorrt_double(
    monkeypatch: pytest.MonkeyPatch, machine_gpu: Callable[[int], None]
) -> Callable[[str], SimpleNamespace]:
    """`tensorrt_double("10.14.1")`: `import tensorrt` gives the double of that version, on a machine with an H100."""

    def install(version: str) -> Any:
        machine_gpu(90)
        module = make_tensorrt(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install
