"""What this machine has of what the jobs need, asked in processes of their own: libraries without a driver crash."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.doctor.probes import IMPORTS_TIMEOUT_S, Probe, run_probe

# What jobs name as libraries, and what tells whether it works.
TORCH, ONNXRUNTIME, ONNXRUNTIME_TENSORRT, TENSORRT, RTX = (
    "torch with CUDA", "onnxruntime-gpu", "onnxruntime-gpu with TensorRT", "tensorrt", "tensorrt_rtx",
)  # fmt: skip
CUDA_BINDINGS = "cuda-bindings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The first GPU (`capability` 89 for 8.9; all of its memory), host memory that is free, in bytes.

    `works` has the version of each library that runs here, `broken` why each other one does not.
    """

    gpu: str | None
    capability: int
    gpu_memory: int
    memory: int
    works: Mapping[str, str]
    broken: Mapping[str, str]


def look() -> Facts:
    """Ask this machine; takes a minute where every library is installed."""
    gpu = run_probe("gpu")
    found: dict[str, Any] = next(iter(gpu.answer.get("gpus") or []), {})
    libraries = _libraries() if found else {}
    reason = gpu.problem or gpu.answer.get("error") or "there is no NVIDIA GPU"
    return Facts(
        gpu=found.get("name"),
        capability=int(found.get("sm", 0)),
        gpu_memory=int(found.get("memory", 0)),
        memory=available_memory(),
        works={name: version for name, (version, problem) in libraries.items() if problem is None},
        broken={name: problem for name, (_, problem) in libraries.items() if problem is not None}
        if found
        else dict.fromkeys((TORCH, ONNXRUNTIME, ONNXRUNTIME_TENSORRT, TENSORRT, RTX, CUDA_BINDINGS), str(reason)),
    )


def free_disk(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not be there yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def available_memory() -> int:
    """Bytes that this machine can give now."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _libraries() -> dict[str, tuple[str, str | None]]:
    """Version, and why it does not work, of each."""
    torch = run_probe("imports", "torch", "diffusers", timeout_s=IMPORTS_TIMEOUT_S)
    built = torch.answer.get("cuda")
    version = str(run_probe("onnxruntime").answer.get("version", ""))
    tensorrt, rtx, bindings = (
        run_probe("tensorrt", "tensorrt"),
        run_probe("tensorrt", "tensorrt_rtx"),
        run_probe("cuda"),
    )
    return {
        TORCH: (
            str(torch.answer.get("loaded", {}).get("torch")),
            torch.problem or (None if built else "built for CPUs"),
        ),
        ONNXRUNTIME: (version, _provider("CUDAExecutionProvider")),
        ONNXRUNTIME_TENSORRT: (version, _provider("TensorrtExecutionProvider")),
        TENSORRT: _told(tensorrt),
        RTX: _told(rtx),
        CUDA_BINDINGS: ("", bindings.problem or bindings.answer.get("refused")),
    }


def _provider(name: str) -> str | None:
    """Why ONNX Runtime does not run on a provider."""
    probe = run_probe("onnxruntime_cuda", name)
    if probe.problem is not None or name in probe.answer.get("providers", []):
        return probe.problem
    return f"{name} does not load: install onnxruntime-gpu, and the libraries that it is built for"


def _told(probe: Probe) -> tuple[str, str | None]:
    return str(probe.answer.get("version", "")), probe.problem
