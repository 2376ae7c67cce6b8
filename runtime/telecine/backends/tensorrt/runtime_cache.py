"""TensorRT for RTX compiles kernels when a context is made; what it compiled is kept in the user's cache directory."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from telecine.atomic import atomic_file
from telecine.backends.tensorrt.opening import Plan
from telecine.errors import RequestError

LOG = logging.getLogger(__name__)


class RuntimeCache:
    """The compiled kernels of one plan. A cache that cannot be read or written costs time, and stops nothing."""

    def __init__(self, plan: Plan) -> None:
        base = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
        name = f"{plan.sidecar.plan_sha256}-{plan.library.version}.cache"
        self.path = base / "telecine" / "tensorrt_rtx" / name
        self._cache: Any = None
        self._before: bytes | None = None

    def attach(self, config: Any) -> None:
        """Let contexts of an IRuntimeConfig use it; all of an engine's share one."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read()
        if not config.set_runtime_cache(self._cache):
            LOG.warning("TensorRT for RTX does not take the runtime cache %s", self.path)

    def save(self) -> None:
        """Write what was compiled since it was read."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._before:
            return
        try:
            with atomic_file(self.path) as partial:
                partial.write_bytes(content)
        except (RequestError, OSError) as error:
            LOG.warning("the runtime cache is not kept: %s", error)

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            LOG.warning("the runtime cache is not read: %s", error)
            return
        if self._cache.deserialize(content):
            self._before = content
        else:  # of another driver or GPU: it is made anew, and replaced
            LOG.info("the runtime cache %s is out of date", self.path)
