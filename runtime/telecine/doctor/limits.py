"""What this process may use of the machine: /proc and the cgroup files, both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def memory_bytes(root: Path = Path("/")) -> tuple[int, int] | None:
    """(usable, total): what is free now and what there is, under the tightest cgroup limit."""
    fields = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    try:
        everything, usable = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        return None
    total = everything
    for folder in _cgroup_folders("memory", root):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        cache = "inactive_file"
        if limit is None:
            limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
            cache = "total_inactive_file"
        if limit is not None and limit < everything:
            # File pages that nobody reads any more count as used, but go when memory is asked for.
            lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
            droppable = next((int(line[1]) for line in lines if line[:1] == [cache]), 0)
            usable = min(usable, max(0, limit - (used or 0) + droppable))
            total = min(total, limit)
    return usable, total


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The cores that the tightest cgroup quota allows, None where there is none."""
    quotas = []
    for folder in _cgroup_folders("cpu", root):
        words = _read(folder / "cpu.max").split()
        if not words:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield this process's cgroup and those above it, as far as they can be seen from here."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        here = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        for folder in (here, *here.parents):
            if (mount / folder).is_dir():
                yield mount / folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and for no file."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None
