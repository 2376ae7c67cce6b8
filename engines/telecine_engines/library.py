"""Which TensorRT builds: the Python packages `tensorrt` (10.x, 11.x) and `tensorrt_rtx`."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from dataclasses import dataclass
from typing import Any

from telecine.errors import EngineError

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
EXTRAS = {TENSORRT: "tensorrt", RTX: "tensorrt-rtx"}  # of telecine


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT package. `api` is its module: both packages have the same classes."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def is_rtx(self) -> bool:
        return self.name == RTX


def open_library(name: str) -> Library:
    """
    Raises:
        EngineError: the package is not installed, or does not load.
    """
    try:
        return Library(name, importlib.import_module(name))
    except ImportError as error:
        raise EngineError(
            f"{name} cannot be imported: {error}",
            expected=f"the package that builds for this target, in telecine's extra {EXTRAS[name]}",
            fix=f'Run: pip install "telecine[{EXTRAS[name]}]"',
        ) from error


def is_installed(name: str) -> bool:
    """Whether the package is there; it is not loaded."""
    return importlib.util.find_spec(name) is not None


def plan_platform() -> str:
    """The platform that plans built here open on, as sidecars write it: "linux-x86_64", "linux-aarch64"."""
    return f"{platform.system().lower()}-{platform.machine()}"
