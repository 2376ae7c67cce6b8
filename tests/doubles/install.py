"""Put the doubles where the runtime imports CUDA and TensorRT from."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_module import make_tensorrt
from telecine.backends.tensorrt import library


def install_cuda(patch: pytest.MonkeyPatch, cuda: CudaDouble) -> CudaDouble:
    """`from cuda.bindings import runtime` gives this double, whether cuda-bindings is installed or not."""
    top, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    top.bindings = bindings  # type: ignore[attr-defined]
    for name, module in {"cuda": top, "cuda.bindings": bindings, "cuda.bindings.runtime": cuda}.items():
        patch.setitem(sys.modules, name, module)
    return cuda


def install_tensorrt(
    patch: pytest.MonkeyPatch, cuda: CudaDouble, name: str = "tensorrt", version: str | None = None
) -> ModuleType:
    """This package is the only TensorRT that can be imported; call again for others beside it."""
    if getattr(library._loaded, "of_doubles", None) is None:
        patch.setattr(library, "_loaded", _Loaded())
        for other in library.EXTRAS:
            patch.setitem(sys.modules, other, None)
    library._loaded.pop(name, None)
    module = make_tensorrt(cuda, name, version)
    patch.setitem(sys.modules, name, module)
    return module


class _Loaded(dict):
    of_doubles = True


def install_onnxruntime(patch: pytest.MonkeyPatch, cuda: CudaDouble, **settings: Any) -> ModuleType:
    """`import onnxruntime` gives a package with CUDA."""
    from doubles.onnxruntime_module import make_onnxruntime  # it imports the real one

    module = make_onnxruntime(cuda, **settings)
    patch.setitem(sys.modules, "onnxruntime", module)
    return module
