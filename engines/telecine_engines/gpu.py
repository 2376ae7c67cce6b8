"""This machine's GPU, by CUDA: nothing here starts TensorRT, which fails hard without a driver."""

from __future__ import annotations

from telecine.backends.cuda.device import Device
from telecine.errors import BackendError, EngineError


def gpu_capability() -> int:
    """The compute capability of the first GPU: 89 for 8.9.

    Raises:
        EngineError: no cuda-bindings, no driver, or no GPU.
    """
    try:
        major, minor = Device.open("auto").compute_capability.split(".")
    except BackendError as error:
        fix = f"{error.fix.rstrip('.')}; or build for TensorRT for RTX, which needs no GPU: --target rtx-sm89"
        raise EngineError(error.got, expected=error.expected, fix=fix) from error
    return 10 * int(major) + int(minor)


def has_gpu() -> bool:
    """Whether `gpu_capability` finds one."""
    try:
        gpu_capability()
    except EngineError:
        return False
    return True
