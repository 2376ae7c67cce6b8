"""The onnxruntime package: importing it, and its exceptions as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from telecine.backends.base import out_of_memory
from telecine.errors import BackendError

# What ONNX Runtime says, in its different layers, when an allocation fails.
OUT_OF_MEMORY = (
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "not enough memory",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)


def load_onnxruntime() -> Any:
    """
    Raises:
        BackendError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported: {error}",
            expected="the onnxruntime package",
            fix='Run: pip install "telecine[onnxruntime]"',
        ) from error
    return onnxruntime


@cache
def _faults() -> tuple[type[Exception], ...]:
    """All that this version has: versions differ, and a name that one lacks would hide the fault itself."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, MemoryError)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """ONNX Runtime's exceptions, which share no base class but Exception, as BackendError."""
    try:
        yield
    except _faults() as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
            raise out_of_memory(f"ONNX Runtime, {doing}: {text}") from error
        raise BackendError(
            f"ONNX Runtime failed {doing}: {text}",
            expected="a graph that this ONNX Runtime runs",
            fix="Run: telecine doctor; then telecine inspect --check BUNDLE.",
        ) from error
