"""`telecine doctor`: does this machine have what a purpose needs, and what to do where it has not.

Each check is a small function of a Machine that returns Checks; CHECKS says which run for which purpose. What
can crash or hang (native libraries, the driver) is asked in a process of its own, by doctor_probes.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import doctor_probes as probes
from .errors import RequestError

Status = Literal["ok", "warn", "fail", "info"]
PURPOSES = ("runtime", "export", "build")

GIB = 1024**3
MINIMUM_PYTHON = (3, 10)
DISK_GIB = {"runtime": 5, "export": 40, "build": 40}  # export: the source and the bundle, side by side
MEMORY_GIB = {"runtime": 4, "export": 8, "build": 16}  # a build takes about 3.3 times its plan

# Packages, by telecine's extra ("" is what it always needs): read from the installed distribution's metadata;
# this table, without minimum versions, stands in where telecine runs from its source tree.
# Everything is imported under its own name, dashes as underscores, but for onnxruntime-gpu.
PACKAGES = {
    "": ("click", "numpy", "safetensors", "tokenizers"),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
    "video": ("av",),
    "export": (
        "diffusers",
        "huggingface-hub",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxscript",
        "sentencepiece",
        "tqdm",
        "torch",
        "transformers",
    ),
}
EXTRAS = {"runtime": ("",), "export": ("", "export"), "build": ("",)}
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # one import name: they overwrite each other's files
TENSORRTS = ("tensorrt", "tensorrt-rtx", "tensorrt-lean")
ENCODERS = ("libx264", "libvpx-vp9", "gif")
GET_DRIVER = "Install the NVIDIA driver, or start the container with `--gpus all`, until `nvidia-smi` works."
UNREADABLE = (importlib.metadata.PackageNotFoundError, KeyError, ValueError)  # absent or damaged metadata


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
    gpu: probes.Probe
    minimums: dict[str, dict[str, str]]  # extra → distribution → minimum version, "" where unknown


def examine(purpose: str, *, path: Path | None = None) -> list[Check]:
    """Check this machine for one of PURPOSES. Raises RequestError for another."""
    if purpose not in PURPOSES:
        raise RequestError(
            f"the purpose is {purpose!r}",
            expected=f"one of {', '.join(PURPOSES)}",
            fix="Run `telecine doctor --for runtime`.",
        )
    machine = Machine(
        purpose=purpose,
        path=Path() if path is None else Path(path),
        gpu=probes.run_probe("gpu"),
        minimums=_minimums(),
    )
    found: list[Check] = []
    for check in CHECKS[purpose]:
        result = check(machine)
        found += [result] if isinstance(result, Check) else result
    return found


def worst(checks: Iterable[Check]) -> str:
    """The gravest status there is: fail, warn, or ok."""
    statuses = {check.status for check in checks}
    return next((status for status in ("fail", "warn") if status in statuses), "ok")


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


# The interpreter and the system.


def check_python(machine: Machine) -> Check:
    found = platform.python_version()
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return Check(name="Python", status="fail", found=found, fix="Use Python 3.10 or newer.")
    if sys.maxsize <= 2**32:
        return Check(name="Python", status="fail", found=f"{found}, 32-bit", fix="Use a 64-bit Python.")
    if sys.version_info < (3, 11):
        found += " (onnxruntime-gpu's wheels need 3.11 or newer)"
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


# Packages.


def check_distribution(machine: Machine) -> Check:
    version = _installed("telecine")
    if version:
        return Check(name="telecine", status="ok", found=version)
    extra = "export" if machine.purpose == "export" else "onnxruntime"
    return Check(
        name="telecine",
        status="warn",
        found=f"not installed, runs from {Path(__file__).parent}: packages' minimum versions are not checked",
        fix=f'Run `pip install -e ".[{extra}]"` in the folder with pyproject.toml.',
    )


def check_packages(machine: Machine) -> list[Check]:
    return [
        _package(name, extra, minimum, "fail")
        for extra in EXTRAS[machine.purpose]
        for name, minimum in machine.minimums.get(extra, {}).items()
        if name not in ONNXRUNTIMES
    ]


def check_imports(machine: Machine) -> list[Check]:
    """A package can be installed and not load: built for another CPU, another Python, another numpy."""
    wanted = [name for extra in EXTRAS[machine.purpose] for name in machine.minimums.get(extra, {})]
    modules = [name.replace("-", "_") for name in wanted if name not in ONNXRUNTIMES and _installed(name)]
    if not modules:
        return []
    probe = probes.run_probe("imports", *modules, timeout_s=probes.IMPORTS_TIMEOUT_S)
    loaded = probe.answer.get("loaded", {})
    found = []
    if probe.problem is None:
        found.append(Check(name="Imports", status="ok", found=f"{len(loaded)} packages load"))
    else:
        culprit = next((name for name in modules if name not in loaded), "python")
        found.append(
            Check(
                name="Imports",
                status="fail",
                found=f"importing {culprit}: {probe.problem}",
                fix=f"Run `pip install --force-reinstall {culprit.replace('_', '-')}`.",
            )
        )
    if "torch" in loaded:
        cuda = probe.answer.get("cuda")
        build = f"built for CUDA {cuda}" if cuda else "CPU build"
        found.append(Check(name="torch build", status="info", found=f"{build}; export runs on the CPU"))
    return found


def check_onnxruntime(machine: Machine) -> list[Check]:
    name = "ONNX Runtime"
    here = {dist: version for dist in ONNXRUNTIMES if (version := _installed(dist))}
    wanted = _wanted_extra(machine)
    if len(here) > 1:
        return [
            Check(
                name=name,
                status="fail",
                found=", ".join(f"{dist} {version}" for dist, version in here.items())
                + ": both installed, and each overwrites files of the other",
                fix=f"Run `pip uninstall -y {' '.join(ONNXRUNTIMES)}`, then `{_pip(wanted)}`.",
            )
        ]
    if not here:
        return [Check(name=name, status="fail", found="not installed", fix=f"Run `{_pip(wanted)}`.")]
    ((dist, version),) = here.items()
    minimum = machine.minimums.get(dist, {}).get(dist, "")
    package = _package(dist, wanted, minimum, "fail")
    if package.status == "fail":
        return [package]
    probe = probes.run_probe("onnxruntime")
    if probe.problem:
        return [
            package,
            Check(
                name=name,
                status="fail",
                found=f"{dist} {version} does not load: {probe.problem}",
                fix=f"Run `pip uninstall -y {' '.join(ONNXRUNTIMES)}`, then `{_pip(dist)}`.",
            ),
        ]
    short = [provider.removesuffix("ExecutionProvider") for provider in probe.answer["providers"]]
    found = f"{probe.answer['version']} runs; built with {', '.join(short)}"
    cuda = [] if machine.purpose == "export" else _onnxruntime_cuda(machine, listed="CUDA" in short)
    return [package, Check(name=name, status="ok", found=found), *cuda]


def _onnxruntime_cuda(machine: Machine, *, listed: bool) -> list[Check]:
    """onnxruntime-gpu lists CUDA on every machine, and runs on the CPU without a word where CUDA fails."""
    name = "ONNX Runtime CUDA"
    gpus = machine.gpu.answer.get("gpus")
    if not listed:
        swap = f"`pip uninstall -y onnxruntime`, then `{_pip('onnxruntime-gpu')}`, would use the GPU."
        return [Check(name=name, status="info", found="this build is CPU only", fix=swap)] if gpus else []
    if not gpus:
        swap = f"`pip uninstall -y onnxruntime-gpu`, then `{_pip('onnxruntime')}`, is the smaller CPU build."
        return [
            Check(
                name=name,
                status="warn",
                found="listed, but no NVIDIA GPU can be used: it will run on the CPU",
                fix=f"{GET_DRIVER} {swap}",
            )
        ]
    probe = probes.run_probe("onnxruntime_cuda")
    if probe.problem is None and "CUDAExecutionProvider" in probe.answer["providers"]:
        return [Check(name=name, status="ok", found="a session loads on the GPU")]
    return [
        Check(
            name=name,
            status="warn",
            found=f"listed, but does not load: {probe.problem or 'a session fell back to the CPU'}",
            fix='Install the CUDA and cuDNN that it was built for: `pip install "onnxruntime-gpu[cuda,cudnn]"`.',
        )
    ]


def check_video(machine: Machine) -> list[Check]:
    package = _package("av", "video", machine.minimums.get("video", {}).get("av", ""), "warn")
    if package.status != "ok":
        return [package]
    probe = probes.run_probe("video", *ENCODERS)
    missing = probe.answer.get("missing")
    if probe.problem is None and not missing:
        return [package, Check(name="Video", status="ok", found=f"encodes with {', '.join(ENCODERS)}")]
    lacks = f"no encoder {', '.join(missing or ())}"
    found = f"PyAV does not load: {probe.problem}" if probe.problem else lacks
    fix = "Run `pip install --force-reinstall --only-binary :all: av`: PyAV's own wheels have the encoders."
    return [package, Check(name="Video", status="warn", found=found, fix=fix)]


# The GPU.


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


def check_tensorrt(machine: Machine) -> list[Check]:
    """Versions and a bare import: `tensorrt_lean.Runtime()` without a device would kill the process."""
    found = []
    for dist in TENSORRTS:
        version = next(filter(None, (_installed(dist + suffix) for suffix in ("", "-cu13", "-cu12"))), None)
        if version is None:
            continue
        probe = probes.run_probe("imports", dist.replace("-", "_"))
        if probe.problem is None:
            found.append(Check(name=dist, status="info", found=f"{version}, loads"))
        else:
            found.append(
                Check(
                    name=dist,
                    status="warn",
                    found=f"{version} does not load: {probe.problem}",
                    fix=f"Run `pip install --force-reinstall {dist}`, or `pip uninstall {dist}`.",
                )
            )
    none = f"none of {', '.join(TENSORRTS)} is installed"
    return found or [Check(name="TensorRT", status="info", found=none)]


def check_engines(machine: Machine) -> Check:
    return Check(
        name="Engines",
        status="info",
        found="this version of telecine cannot build TensorRT engines; its bundles run on ONNX Runtime",
        fix="Use `telecine generate BUNDLE`; `telecine doctor --for runtime` checks what it needs.",
    )


# Disk, memory, cores, caches.


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
    memory = probes.memory_bytes()
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
    quota = probes.cpu_quota()
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


CHECKS: dict[str, tuple[Callable[[Machine], Check | list[Check]], ...]] = {
    "runtime": (
        check_python,
        check_system,
        check_distribution,
        check_packages,
        check_imports,
        check_onnxruntime,
        check_video,
        check_gpu,
        check_tensorrt,
        check_disk,
        check_memory,
        check_cores,
        check_cache,
    ),
    "export": (
        check_python,
        check_system,
        check_distribution,
        check_packages,
        check_imports,
        check_onnxruntime,
        check_gpu,
        check_disk,
        check_memory,
        check_cores,
        check_cache,
        check_hugging_face,
    ),
    "build": (
        check_python,
        check_system,
        check_distribution,
        check_packages,
        check_imports,
        check_gpu,
        check_tensorrt,
        check_engines,
        check_disk,
        check_memory,
        check_cores,
        check_cache,
    ),
}


def _installed(distribution: str) -> str | None:
    """The installed version, None where there is none (or its metadata is damaged beyond reading)."""
    try:
        return importlib.metadata.version(distribution)
    except UNREADABLE:
        return None


def _minimums() -> dict[str, dict[str, str]]:
    """Extra → distribution → minimum version, from telecine's own metadata, else PACKAGES without versions.

    Reads `name>=1.2; extra == "x"`, which is all that telecine's pyproject.toml writes.
    """
    try:
        lines = importlib.metadata.requires("telecine") or []
    except UNREADABLE:
        return {extra: dict.fromkeys(names, "") for extra, names in PACKAGES.items()}
    minimums: dict[str, dict[str, str]] = {}
    for line in lines:
        wanted, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", wanted.strip())
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        minimum = re.search(r">=\s*([\w.]+)", wanted)
        if name:
            by_name = minimums.setdefault(extra[1] if extra else "", {})
            by_name[re.sub(r"[-_.]+", "-", name[0]).lower()] = minimum[1] if minimum else ""
    return minimums


def _package(name: str, extra: str, minimum: str, status: Status) -> Check:
    """One distribution against its minimum version; `status` is what it means not to have it."""
    version = _installed(name)
    if version is None:
        return Check(name=name, status=status, found="not installed", fix=f"Run `{_pip(extra)}`.")
    if minimum and _release(version) < _release(minimum):
        return Check(
            name=name,
            status=status,
            found=f"{version}, older than {minimum}",
            fix=f'Run `pip install --upgrade "{name}>={minimum}"`.',
        )
    return Check(name=name, status="ok", found=f"{version} (needs {minimum})" if minimum else version)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without trailing zeros: a release candidate counts as its release."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    numbers = [int(part) for part in match[1].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _pip(extra: str) -> str:
    return f'pip install "telecine[{extra}]"' if extra else 'pip install "telecine"'


def _wanted_extra(machine: Machine) -> str:
    """The extra that brings the ONNX Runtime for this purpose and machine."""
    if machine.purpose == "export":
        return "export"
    on_gpu = bool(machine.gpu.answer.get("gpus")) and sys.version_info >= (3, 11)
    return "onnxruntime-gpu" if on_gpu else "onnxruntime"


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
