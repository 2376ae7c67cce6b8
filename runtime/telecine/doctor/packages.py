"""Packages: installed, new enough, and able to load."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from telecine.doctor import probes
from telecine.doctor.check import Check, Machine, Status

# Packages, by telecine's extra ("" is what it always needs): read from the installed distribution's metadata;
# this table, without minimum versions, stands in where telecine runs from its source tree.
# Everything is imported under its own name, dashes as underscores, but for onnxruntime-gpu and pillow (PIL).
PACKAGES = {
    "": ("click", "numpy", "safetensors", "tokenizers"),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("cuda-bindings", "onnxruntime-gpu"),
    "video": ("av", "pillow"),
    "export": (
        "diffusers",
        "gguf",
        "huggingface-hub",
        "onnx",
        "ml-dtypes",
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
UNREADABLE = (importlib.metadata.PackageNotFoundError, KeyError, ValueError)  # absent or damaged metadata


def check_distribution(machine: Machine) -> Check:
    version = installed("telecine")
    if version:
        return Check(name="telecine", status="ok", found=version)
    extra = "export" if machine.purpose == "export" else "onnxruntime"
    return Check(
        name="telecine",
        status="warn",
        found=f"not installed, runs from {Path(__file__).parents[1]}: packages' minimum versions are not checked",
        fix=f'Run `pip install -e ".[{extra}]"` in the folder with pyproject.toml.',
    )


def check_packages(machine: Machine) -> list[Check]:
    return [
        check_package(name, extra, minimum, "fail")
        for extra in EXTRAS[machine.purpose]
        for name, minimum in machine.minimums.get(extra, {}).items()
        if name not in ONNXRUNTIMES
    ]


def check_imports(machine: Machine) -> list[Check]:
    """A package can be installed and not load: built for another CPU, another Python, another numpy."""
    wanted = [name for extra in EXTRAS[machine.purpose] for name in machine.minimums.get(extra, {})]
    modules = [name.replace("-", "_") for name in wanted if name not in ONNXRUNTIMES and installed(name)]
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


def installed(distribution: str) -> str | None:
    """The installed version, None where there is none (or its metadata is damaged beyond reading)."""
    try:
        return importlib.metadata.version(distribution)
    except UNREADABLE:
        return None


def minimums() -> dict[str, dict[str, str]]:
    """Extra → distribution → minimum version, from telecine's own metadata, else PACKAGES without versions.

    Reads `name>=1.2; extra == "x"`, which is all that telecine's pyproject.toml writes.
    """
    try:
        lines = importlib.metadata.requires("telecine") or []
    except UNREADABLE:
        return {extra: dict.fromkeys(names, "") for extra, names in PACKAGES.items()}
    wanted_by_extra: dict[str, dict[str, str]] = {}
    for line in lines:
        wanted, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", wanted.strip())
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        minimum = re.search(r">=\s*([\w.]+)", wanted)
        if name:
            by_name = wanted_by_extra.setdefault(extra[1] if extra else "", {})
            by_name[re.sub(r"[-_.]+", "-", name[0]).lower()] = minimum[1] if minimum else ""
    return wanted_by_extra


def check_package(name: str, extra: str, minimum: str, status: Status) -> Check:
    """One distribution against its minimum version; `status` is what it means not to have it."""
    version = installed(name)
    if version is None:
        return Check(name=name, status=status, found="not installed", fix=f"Run `{pip_install(extra)}`.")
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


def pip_install(extra: str) -> str:
    return f'pip install "telecine[{extra}]"' if extra else 'pip install "telecine"'
