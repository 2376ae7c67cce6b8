"""The TensorRT packages: which of those installed opens a plan."""

from __future__ import annotations

import importlib
import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from telecine.engine import Sidecar
from telecine.errors import EngineError

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "tensorrt_lean": "tensorrt-lean"}
# TensorRT's DataType by ONNX's names.
DATA_TYPES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "float8e4m3fn": "FP8",
    "int8": "INT8", "int32": "INT32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8",
}  # fmt: skip
KEPT = 5  # of the latest errors
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Library:
    """A TensorRT package: its module, its version, and the log that all of its objects write to.

    TensorRT keeps the first logger that a process gives it (NvInferRuntime.h, createInferRuntime), so there is one for
    each package.
    """

    name: str
    module: Any
    version: str
    log: Any

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def data_type(self, dtype: str) -> Any:
        """The package's DataType of an ONNX type by name; None where it has none."""
        return getattr(self.module.DataType, DATA_TYPES.get(dtype, dtype), None)

    def errors(self) -> str:
        """What this thread's last failed call said, which is forgotten with this."""
        return self.log.take()


_loaded: dict[str, Library] = {}
_lock = threading.Lock()


def library_for(sidecar: Sidecar) -> Library:
    """The installed package that opens a plan: the one that built it; for version-compatible plans first the lean one.

    The driver must have been asked before: the lean runtime crashes where there is none.

    Raises:
        EngineError: no such package is installed, or of another version.
    """
    lean = sidecar.library == "tensorrt" and sidecar.version_compatible
    names = ["tensorrt_lean", "tensorrt"] if lean else [sidecar.library]
    problems = []
    for name in names:
        try:
            library = load_library(name)
        except ImportError as error:
            problems.append(f"{name} cannot be imported ({error})")
            continue
        if opens(library.name, library.version, sidecar):
            return library
        problems.append(f"{name} is version {library.version}")
    raise EngineError(
        "; ".join(problems),
        expected=f"{sidecar.library} {_accepted(sidecar)}, which the plan was built with",
        fix=" or ".join(f'pip install "{EXTRAS[name].replace("_", "-")}=={sidecar.library_version}"' for name in names)
        + f" (the extra telecine[{EXTRAS[sidecar.library]}] names them); or run: telecine build BUNDLE",
    )


def opens(name: str, version: str, sidecar: Sidecar) -> bool:
    """Whether a package of this version opens a plan: that version; for version-compatible plans newer ones too.

    The full `tensorrt` opens another version's plans only with a lean runtime inside, as host code that would run when
    the plan is opened (TensorRT documentation, "Version Compatibility"). telecine builds none such, and opens none.
    """
    if version == sidecar.library_version:
        return True
    here, built = _numbers(version), _numbers(sidecar.library_version)
    return sidecar.version_compatible and name != "tensorrt" and here[0] == built[0] and here >= built


def _accepted(sidecar: Sidecar) -> str:
    if not sidecar.version_compatible:
        return sidecar.library_version
    return f"{sidecar.library_version} or newer below {_numbers(sidecar.library_version)[0] + 1}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def load_library(name: str) -> Library:
    """A package by its name, loaded once.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    with _lock:
        if name not in _loaded:
            module = importlib.import_module(name)
            _loaded[name] = Library(name=name, module=module, version=str(module.__version__), log=_log(module))
        return _loaded[name]


def _log(trt: Any) -> Any:
    """An ILogger that passes on to `logging`, and keeps errors for the exception that tells them, a few per thread."""
    severities = trt.ILogger.Severity
    errors = (severities.ERROR, severities.INTERNAL_ERROR)
    # A warning is about what users cannot choose, and exceptions tell the errors: -v shows both.
    shown = (*errors, severities.WARNING)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._kept: dict[int, deque[str]] = {}

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors:
                self._kept.setdefault(threading.get_ident(), deque(maxlen=KEPT)).append(" ".join(msg.split()))
            LOG.log(logging.INFO if severity in shown else logging.DEBUG, "%s", msg)

        def take(self) -> str:
            """The errors of this thread, or, where it said none, of those that TensorRT works on."""
            thread = threading.get_ident()
            if thread not in self._kept:
                thread = next(reversed([*self._kept]), thread)
            return "; ".join(self._kept.pop(thread, ())) or "it gives no reason"

    return Log()
