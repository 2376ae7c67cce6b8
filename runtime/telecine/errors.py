"""Every error that telecine raises on purpose.

TelecineError
 ├── SourceError    the checkpoint that export reads, a LoRA or a fine-tune
 ├── BundleError    the folder that export writes and the runtime opens
 ├── RequestError   what a caller asks `generate` for
 ├── BackendError   ONNX Runtime or TensorRT, and the machine below it
 ├── EngineError    building or loading a TensorRT engine
 └── Cancelled      the caller's own callback stopped a run
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class TelecineError(Exception):
    """A fault that the user can act on: what was got, what was expected, what to do next.

    Args:
        got: what telecine found, as a clause ("height is 500").
        expected: what it needs instead ("a multiple of 32").
        fix: the next step, as a sentence ("Use 480 or 512.").
    """

    def __init__(self, got: str, *, expected: str, fix: str) -> None:
        super().__init__(got, expected, fix)
        self.got = got
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[Callable[[], TelecineError], tuple[()]]:
        # Exceptions pickle by positional arguments; these are keywords, and process pools pickle exceptions.
        return partial(type(self), self.got, expected=self.expected, fix=self.fix), ()

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}. {self.fix}"


class SourceError(TelecineError):
    """A checkpoint, LoRA or fine-tune is missing, incomplete, or not one that telecine takes."""


class BundleError(TelecineError):
    """The bundle is missing, damaged, edited, or of another format."""


class RequestError(TelecineError):
    """A parameter of a request is wrong."""


class BackendError(TelecineError):
    """A backend is missing, refuses a graph, or failed while running one."""


class EngineError(TelecineError):
    """A TensorRT engine could not be built or loaded."""


class Cancelled(TelecineError):
    """The caller's callback stopped the run."""
