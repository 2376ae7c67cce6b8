"""The engines that lie in a folder: `telecine inspect` lists them, `telecine pack` chooses among them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from telecine.engine import Sidecar
from telecine.errors import EngineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A plan and its sidecar."""

    plan: Path
    sidecar: Sidecar


def list_engines(folder: Path) -> list[Engine]:
    """The engines of a folder, oldest first; without one there are none. A damaged sidecar is left out and logged."""
    found: list[tuple[int, Engine]] = []
    for path in sorted(folder.glob("*-trt*/*/*.json")):
        plan = path.with_suffix(".plan")
        try:
            engine = Engine(plan, Sidecar.read(path))
            if plan.stat().st_size == engine.sidecar.plan_size:
                found.append((path.stat().st_mtime_ns, engine))
        except (EngineError, OSError) as error:
            logger.warning("%s is no engine: %s", plan, error)
    return [engine for _, engine in sorted(found, key=lambda each: each[0])]
