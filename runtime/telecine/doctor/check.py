"""What a check takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from telecine.doctor.probes import Probe

Status = Literal["ok", "warn", "fail", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding; `fix` is the next step, there for every warn and fail."""

    name: str
    status: Status
    found: str
    fix: str | None = None

    def __post_init__(self) -> None:
        assert self.fix or self.status in ("ok", "info"), self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the checks share: the question, and the answers that more than one of them needs."""

    purpose: str
    path: Path  # where bundles and clips will be written
    gpu: Probe
    minimums: dict[str, dict[str, str]]  # extra → distribution → minimum version, "" where unknown
