"""What runs networks and writes clips: ONNX Runtime, TensorRT, PyAV."""

from __future__ import annotations

from telecine.doctor import packages, probes
from telecine.doctor.check import Check, Machine
from telecine.doctor.machine import GET_DRIVER
from telecine.doctor.packages import ONNXRUNTIMES

TENSORRTS = ("tensorrt", "tensorrt-rtx", "tensorrt-lean")
ENCODERS = ("libx264", "libvpx-vp9", "gif")


def check_onnxruntime(machine: Machine) -> list[Check]:
    name = "ONNX Runtime"
    here = {dist: version for dist in ONNXRUNTIMES if (version := packages.installed(dist))}
    wanted = _wanted_extra(machine)
    if len(here) > 1:
        return [
            Check(
                name=name,
                status="fail",
                found=", ".join(f"{dist} {version}" for dist, version in here.items())
                + ": both installed, and each overwrites files of the other",
                fix=f"Run `pip uninstall -y {' '.join(ONNXRUNTIMES)}`, then `{packages.pip_install(wanted)}`.",
            )
        ]
    if not here:
        return [Check(name=name, status="fail", found="not installed", fix=f"Run `{packages.pip_install(wanted)}`.")]
    ((dist, version),) = here.items()
    minimum = machine.minimums.get(dist, {}).get(dist, "")
    package = packages.check_package(dist, wanted, minimum, "fail")
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
                fix=f"Run `pip uninstall -y {' '.join(ONNXRUNTIMES)}`, then `{packages.pip_install(dist)}`.",
            ),
        ]
    short = [provider.removesuffix("ExecutionProvider") for provider in probe.answer["providers"]]
    found = f"{probe.answer['version']} runs; built with {', '.join(short)}"
    cuda = [] if machine.purpose == "export" else _onnxruntime_cuda(machine, listed="CUDA" in short)
    return [package, Check(name=name, status="ok", found=found), *cuda]


def _onnxruntime_cuda(machine: Machine, *, listed: bool) -> list[Check]:
    """onnxruntime-gpu lists CUDA on every machine; only a session, made as the backend makes it, tells if it loads."""
    name = "ONNX Runtime CUDA"
    gpus = machine.gpu.answer.get("gpus")
    if not listed:
        swap = f"For `--device cuda`: `pip uninstall -y onnxruntime`, then `{packages.pip_install('onnxruntime-gpu')}`."
        return [Check(name=name, status="info", found="this build is CPU only", fix=swap)] if gpus else []
    if not gpus:
        install = packages.pip_install("onnxruntime")
        swap = f"`pip uninstall -y onnxruntime-gpu`, then `{install}`, is the smaller CPU build."
        return [
            Check(
                name=name,
                status="warn",
                found="listed, but no NVIDIA GPU can be used: networks run on the CPU",
                fix=f"{GET_DRIVER} {swap}",
            )
        ]
    probe = probes.run_probe("onnxruntime_cuda")
    if probe.problem is None and "CUDAExecutionProvider" in probe.answer["providers"]:
        return [Check(name=name, status="ok", found="a session loads on the GPU: `--device cuda` asks for it")]
    return [
        Check(
            name=name,
            status="warn",
            found=f"listed, but does not load: {probe.problem or 'a session fell back to the CPU'}",
            fix="Install the CUDA and cuDNN that it was built for: `pip install 'onnxruntime-gpu[cuda,cudnn]'`, or "
            "name their folders in LD_LIBRARY_PATH. Until then use `--device cpu`.",
        )
    ]


def check_video(machine: Machine) -> list[Check]:
    package = packages.check_package("av", "video", machine.minimums.get("video", {}).get("av", ""), "warn")
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


def check_tensorrt(machine: Machine) -> list[Check]:
    """Each package: a bare import where there is no GPU, for `tensorrt_lean.Runtime()` would kill the process there."""
    found = []
    for dist in TENSORRTS:
        version = _tensorrt_version(dist)
        if version is None:
            continue
        module = dist.replace("-", "_")
        gpus = machine.gpu.answer.get("gpus")
        probe = probes.run_probe("tensorrt", module) if gpus else probes.run_probe("imports", module)
        if probe.problem is None:
            runs = "makes a runtime on the GPU" if gpus else "loads; it runs engines where there is an NVIDIA GPU"
            found.append(Check(name=dist, status="ok" if gpus else "info", found=f"{version}, {runs}"))
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


def check_cuda(machine: Machine) -> list[Check]:
    """What TensorRT sessions call CUDA through, asked as they ask it; nothing where no TensorRT is installed."""
    if not any(map(_tensorrt_version, TENSORRTS)):
        return []
    package = packages.check_package(
        "cuda-bindings", "tensorrt", machine.minimums.get("tensorrt", {}).get("cuda-bindings", ""), "warn"
    )
    if package.status != "ok":
        return [package]
    probe = probes.run_probe("cuda")
    if probe.problem:
        fix = "Run `pip install --force-reinstall cuda-bindings`."
        return [package, Check(name="CUDA", status="warn", found=f"does not load: {probe.problem}", fix=fix)]
    if probe.answer["refused"]:
        fix = probe.answer["fix"]
        return [package, Check(name="CUDA", status="warn", found=f"{probe.answer['refused']}: no engine runs", fix=fix)]
    capability = probe.answer["compute_capability"]
    found = f"cuda:0 has compute capability {capability}: its engines are of target trt-sm{capability.replace('.', '')}"
    return [package, Check(name="CUDA", status="ok", found=f"{found} or rtx-sm{capability.replace('.', '')}")]


def check_engines(machine: Machine) -> Check:
    builders = [dist for dist in TENSORRTS if dist != "tensorrt-lean" and _tensorrt_version(dist)]
    if builders:
        return Check(name="Engines", status="ok", found=f"telecine build uses {', '.join(builders)}")
    return Check(
        name="Engines",
        status="warn",
        found="no TensorRT that builds is installed; bundles run on ONNX Runtime",
        fix=f"Run `{packages.pip_install('tensorrt')}` (to build on this machine's GPU) or "
        f"`{packages.pip_install('tensorrt-rtx')}` (for RTX GPUs, with or without one here).",
    )


def _tensorrt_version(dist: str) -> str | None:
    return next(filter(None, (packages.installed(dist + suffix) for suffix in ("", "-cu13", "-cu12"))), None)


def _wanted_extra(machine: Machine) -> str:
    """The extra that brings the ONNX Runtime for this purpose and machine."""
    if machine.purpose == "export":
        return "export"
    return "onnxruntime-gpu" if machine.gpu.answer.get("gpus") else "onnxruntime"
