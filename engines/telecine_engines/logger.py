"""What TensorRT says while it works: to Python's logging, and errors kept for the exception that follows."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from telecine_engines.library import Library

logger = logging.getLogger("telecine_engines.tensorrt")

KEPT = 3  # of the last errors: later ones say what the first one led to


class Log:
    """`logger` is what TensorRT's objects are made with."""

    def __init__(self, library: Library) -> None:
        self._errors: deque[str] = deque(maxlen=KEPT)
        self.logger = _bridge(library.api, self._errors)

    def errors(self) -> str:
        """The last errors in one line."""
        return "; ".join(self._errors) or "it gave no reason"


def _bridge(api: Any, errors: deque[str]) -> Any:
    # The warnings of a build are about choices that users cannot make: -v shows them.
    levels = {
        api.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        api.ILogger.Severity.ERROR: logging.ERROR,
        api.ILogger.Severity.WARNING: logging.INFO,
    }

    base: Any = api.ILogger

    class Bridge(base):
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                errors.append(" ".join(message.split()))
                level = logging.INFO  # the exception says it
            logger.log(level, "%s", message)

    return Bridge()
