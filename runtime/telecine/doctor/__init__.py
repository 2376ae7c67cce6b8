"""`telecine doctor`: does this machine have what a purpose needs, and what to do where it has not.

Each check is a small function of a Machine that returns Checks; CHECKS says which run for which purpose. What
can crash or hang (native libraries, the driver) is asked in a process of its own, by `probes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from telecine.doctor import backends, machine, packages, probes
from telecine.doctor.check import Check, Machine
from telecine.errors import RequestError

__all__ = ["PURPOSES", "Check", "as_text", "examine"]

CHECKS: dict[str, tuple[Callable[[Machine], Check | list[Check]], ...]] = {
    "runtime": (
        machine.check_python,
        machine.check_system,
        packages.check_distribution,
        packages.check_packages,
        packages.check_imports,
        backends.check_onnxruntime,
        backends.check_video,
        machine.check_gpu,
        backends.check_tensorrt,
        backends.check_cuda,
        machine.check_disk,
        machine.check_memory,
        machine.check_cores,
        machine.check_cache,
    ),
    "export": (
        machine.check_python,
        machine.check_system,
        packages.check_distribution,
        packages.check_packages,
        packages.check_imports,
        backends.check_onnxruntime,
        machine.check_gpu,
        machine.check_disk,
        machine.check_memory,
        machine.check_cores,
        machine.check_cache,
        machine.check_hugging_face,
    ),
    "build": (
        machine.check_python,
        machine.check_system,
        packages.check_distribution,
        packages.check_packages,
        packages.check_imports,
        machine.check_gpu,
        backends.check_tensorrt,
        backends.check_cuda,
        backends.check_engines,
        machine.check_disk,
        machine.check_memory,
        machine.check_cores,
        machine.check_cache,
    ),
}
PURPOSES = tuple(CHECKS)


def examine(purpose: str, *, path: Path | None = None) -> list[Check]:
    """Check this machine for one of PURPOSES. Raises RequestError for another."""
    if purpose not in PURPOSES:
        raise RequestError(
            f"the purpose is {purpose!r}",
            expected=f"one of {', '.join(PURPOSES)}",
            fix="Run `telecine doctor --for runtime`.",
        )
    here = Machine(
        purpose=purpose,
        path=Path() if path is None else Path(path),
        gpu=probes.run_probe("gpu"),
        minimums=packages.minimums(),
    )
    found: list[Check] = []
    for check in CHECKS[purpose]:
        result = check(here)
        found += [result] if isinstance(result, Check) else result
    return found


def as_text(checks: Iterable[Check]) -> str:
    """One aligned line a check, its fix indented below it."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {' '.join(check.found.split())}".rstrip())
        if check.fix:
            lines.append(f"{'':6}{check.fix}")
    return "\n".join(lines)
