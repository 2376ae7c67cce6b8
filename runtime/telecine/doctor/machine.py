"""The interpreter, the system, the GPU, disk, memory, cores and caches."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from telecine.doctor import limits
from telecine.doctor.check import Check, Machine

GIB = 1024**3
MINIMUM_PYTHON = {"runtime": (3, 10), "export": (3, 11), "build": (3, 10)}  # diffusers 0.42.1 needs 3.11
DISK_GIB = {"runtime": 5, "export": 40, "build": 40}  # export: the source and the bundle, side by side
MEMORY_GIB = {"runtime": 4, "export": 8, "build": 16}  # a build takes about 3.3 times its plan
GET_DRIVER = "Install the NVIDIA driver, or start the container with `--gpus all`, until `nvidia-smi` works."


def check_python(machine: Machine) -> Check:
    found = platform.python_version()
    major, minor = MINIMUM_PYTHON[machine.purpose]
    if sys.version_info[:2] < (major, minor):
        return Check(name="Python", status="fail", found=found, fix=f"Use Python {major}.{minor} or newer.")
    if sys.maxsize <= 2**32:
        return Check(name="Python", status="fail", found=f"{found}, 32-bit", fix="Use a 64-bit Python.")
    if sys.version_info < (3, 11):
        found += " (1.23 is the last ONNX Runtime for it)"
    return Check(name="Python", status="ok", found=found)


def check_system(machine: Machine) -> Check:
    system, arch = platform.system(), platform.machine()
    libc = " ".join(platform.libc_ver()).strip()
    found = f"{system} {platform.release()}, {arch}, {libc or 'C library unknown'}"
    if system == "Linux" and arch in ("x86_64", "aarch64") and libc.startswith("glibc"):
        return Check(name="System", status="ok", found=found)
    return Check(
        name="System",
        status="warn",
        found=found,
        fix="Use Linux with glibc (Debian, Ubuntu, RHEL...) on x86-64 or aarch64: nothing else is tested.",
    )


def check_gpu(machine: Machine) -> list[Check]:
    probe, name = machine.gpu, "NVIDIA driver"
    driver, gpus = probe.answer.get("driver"), probe.answer.get("gpus", [])
    error = probe.problem or probe.answer.get("error")
    if error:
        found, fix = f"does not work: {error}", GET_DRIVER
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            found += f" (CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r})"
            fix = f"Unset CUDA_VISIBLE_DEVICES. {GET_DRIVER}"
        return [Check(name=name, status="warn", found=found, fix=fix)]
    if not driver:
        if machine.purpose == "build":
            return [Check(name=name, status="warn", found="none: engines need an NVIDIA GPU", fix=GET_DRIVER)]
        return [Check(name=name, status="info", found="none: the CPU runs everything")]
    checks = [Check(name=name, status="ok", found=f"supports CUDA {driver}")]
    for index, gpu in enumerate(gpus):
        found = f"{gpu['name']}, sm_{gpu['sm']}, {gpu['memory'] / GIB:.1f} GiB"
        checks.append(Check(name=f"GPU {index}", status="ok", found=found))
    return checks


def check_disk(machine: Machine) -> Check:
    name, need = "Disk", DISK_GIB[machine.purpose]
    problem = _unwritable(machine.path)
    if problem:
        return Check(name=name, status="fail", found=problem, fix="Choose a folder that you may write to.")
    free = shutil.disk_usage(_existing(machine.path)).free / GIB
    found = f"{free:.1f} GiB free at {machine.path.absolute()}"
    if free < need:
        return Check(
            name=name,
            status="warn",
            found=f"{found}, {need} GiB advised",
            fix="Free some space, or write to another disk.",
        )
    return Check(name=name, status="ok", found=found)


def check_memory(machine: Machine) -> Check:
    name, need = "Memory", MEMORY_GIB[machine.purpose]
    memory = limits.memory_bytes()
    if memory is None:
        return Check(name=name, status="info", found="unknown: /proc/meminfo cannot be read")
    usable, total = (amount / GIB for amount in memory)
    found = f"{usable:.1f} GiB free of {total:.1f} GiB"
    if usable < need:
        return Check(
            name=name,
            status="warn",
            found=f"{found}, {need} GiB advised",
            fix="Close other programs, or raise the container's memory limit.",
        )
    return Check(name=name, status="ok", found=found)


def check_cores(machine: Machine) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = limits.cpu_quota()
    found = f"{cores} usable of {os.cpu_count()}"
    if quota is not None and quota < cores:
        found += f", but a cgroup quota allows the time of {quota:g}"
    return Check(name="CPU cores", status="ok", found=found)


def check_cache(machine: Machine) -> Check:
    return _cache_folder("Cache", _user_cache() / "telecine", "XDG_CACHE_HOME")


def check_hugging_face(machine: Machine) -> list[Check]:
    home = os.environ.get("HF_HOME") or str(_user_cache() / "huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = "offline: hub ids are looked up in the local cache only" if offline else "online (not contacted)"
    return [
        Check(name="Hugging Face hub", status="info", found=found),
        _cache_folder("HF_HOME", Path(home).expanduser(), "HF_HOME"),
    ]


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _cache_folder(name: str, folder: Path, variable: str) -> Check:
    folder = Path(os.path.expanduser(folder))  # unlike Path.expanduser, leaves "~" where there is no home
    problem = _unwritable(folder)
    if problem:
        fix = f"Set {variable} to a folder that you may write to."
        return Check(name=name, status="warn", found=problem, fix=fix)
    return Check(name=name, status="ok", found=f"{folder} is writable")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if os.path.exists(place)), path)


def _unwritable(path: Path) -> str | None:
    """Why nothing can be written at or below the path; leaves nothing behind."""
    place = path
    try:
        place = _existing(path)  # raises where the working directory was deleted
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{path}: cannot write in {place}: {error.strerror or error}"
