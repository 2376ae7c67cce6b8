"""Which TensorRT builds: the Python packages `tensorrt` (10.x, 11.x) and `tensorrt_rtx`."""

from __future__ import annotations

import importlib.util

from telecine.backends.tensorrt.library import EXTRAS, Library, load_library
from telecine.errors import EngineError

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"


def open_library(name: str) -> Library:
    """
    Raises:
        EngineError: the package is not installed, or does not load.
    """
    try:
        return load_library(name)
    except ImportError as error:
        raise EngineError(
            f"{name} cannot be imported: {error}",
            expected=f"the package that builds for this target, in telecine's extra {EXTRAS[name]}",
            fix=f'Run: pip install "telecine[{EXTRAS[name]}]"',
        ) from error


def is_installed(name: str) -> bool:
    """Whether the package is there; it is not loaded."""
    return importlib.util.find_spec(name) is not None
