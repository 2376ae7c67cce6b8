"""`cuda.bindings.runtime`, found to have a driver and a GPU before anything else asks for one."""

from __future__ import annotations

from typing import Any

from telecine.backends.base import out_of_memory
from telecine.errors import BackendError

# cudaError_t's values: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE, NOT_READY = 2, 35, 100, 600
GET_DRIVER = "Install the NVIDIA driver, or start the container with `--gpus all`; telecine doctor checks it."


class Cuda:
    """The CUDA runtime's functions, every status code checked."""

    def __init__(self, api: Any) -> None:
        self.api = api

    @classmethod
    def load(cls) -> Cuda:
        """
        Raises:
            BackendError: cuda-bindings is not installed; there is no driver, one too old for it, or no GPU.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(
                f"cuda-bindings cannot be imported: {error}",
                expected="the package that calls CUDA",
                fix='Run: pip install "telecine[tensorrt]" (or tensorrt-rtx, tensorrt-lean, onnxruntime-gpu)',
            ) from error
        cuda = cls(runtime)
        cuda._check_driver()
        return cuda

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the CUDA runtime returns, without its status.

        Raises:
            BackendError: the status is not cudaSuccess; out of memory says so.
        """
        status, *values = getattr(self.api, function)(*arguments)
        self.check(function, status)
        return values[0] if len(values) == 1 else tuple(values)

    def check(self, function: str, status: Any) -> None:
        """
        Raises:
            BackendError: the status is not cudaSuccess; out of memory says so.
        """
        if not int(status):
            return
        name, text = (_decoded(ask(status)[1]) for ask in (self.api.cudaGetErrorName, self.api.cudaGetErrorString))
        if int(status) == OUT_OF_MEMORY:
            raise out_of_memory(f"CUDA, in {function}: {text}")
        raise BackendError(
            f"{function} failed: {name} ({int(status)}): {text}",
            expected="cudaSuccess",
            fix="Run: telecine doctor. After an illegal address or a failed launch, start a new process.",
        )

    def _check_driver(self) -> None:
        """Ask for a driver, then for devices: these calls answer where others crash.

        `cudaDriverGetVersion` gives 0 where no driver is installed. A driver of an older major version is refused with
        the first use of a device; an older minor version is not: https://docs.nvidia.com/deploy/cuda-compatibility.
        """
        driver = self.call("cudaDriverGetVersion")
        if driver == 0:
            raise BackendError("there is no NVIDIA driver", expected="one that CUDA can use", fix=GET_DRIVER)
        runtime = self.call("cudaRuntimeGetVersion")
        status, count = self.api.cudaGetDeviceCount()
        if int(status) == INSUFFICIENT_DRIVER:
            raise _old_driver(driver, runtime)
        if int(status) == NO_DEVICE or (int(status) == 0 and count == 0):
            raise BackendError("there is no NVIDIA GPU that CUDA can use", expected="at least one", fix=GET_DRIVER)
        self.check("cudaGetDeviceCount", status)


def _old_driver(driver: int, runtime: int) -> BackendError:
    return BackendError(
        f"the NVIDIA driver is for CUDA {_version(driver)}, the CUDA runtime is {_version(runtime)}",
        expected=f"a driver for CUDA {runtime // 1000}",
        fix=f'Update the driver, or run: pip install "cuda-bindings>={max(driver // 1000, 12)},<{driver // 1000 + 1}".',
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)
