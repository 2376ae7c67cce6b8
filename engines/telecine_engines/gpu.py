"""This machine's GPU, asked through cuda-bindings: nothing here starts TensorRT, which fails hard without a driver."""

from __future__ import annotations

from types import ModuleType

from telecine.errors import EngineError

NO_GPU_FIX = "Build on a machine with the GPU, or for TensorRT for RTX, which needs none: --target rtx-sm89"


def gpu_capability() -> int:
    """The compute capability of the first GPU: 89 for 8.9.

    Raises:
        EngineError: no cuda-bindings, no driver, or no GPU.
    """
    runtime = _cuda_runtime()
    # Zero is the clean "no driver": other calls answer with errors that depend on their order.
    if _call(runtime.cudaDriverGetVersion(), "the driver's version") == 0:
        raise _no_gpu("this machine has no NVIDIA driver")
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or count == 0:
        raise _no_gpu(f"CUDA finds no GPU ({error.name})")
    attributes = runtime.cudaDeviceAttr
    major, minor = (
        _call(runtime.cudaDeviceGetAttribute(attribute, 0), "the GPU's compute capability")
        for attribute in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
    )
    return 10 * major + minor


def has_gpu() -> bool:
    """Whether `gpu_capability` finds one."""
    try:
        gpu_capability()
    except EngineError:
        return False
    return True


def _cuda_runtime() -> ModuleType:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            f"cuda-bindings cannot be imported: {error}",
            expected="the package that finds this machine's GPU",
            fix='Run: pip install "telecine[tensorrt]", or "telecine[tensorrt-rtx]"',
        ) from error
    module: ModuleType = runtime
    return module


def _call(answer: tuple[object, int], what: str) -> int:
    error, value = answer
    if int(error) != 0:  # type: ignore[call-overload]
        raise _no_gpu(f"CUDA does not tell {what} ({error})")
    return value


def _no_gpu(problem: str) -> EngineError:
    return EngineError(problem, expected="an NVIDIA GPU and its driver", fix=NO_GPU_FIX)
