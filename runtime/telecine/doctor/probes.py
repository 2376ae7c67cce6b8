"""What doctor asks native libraries, in a process of their own.

A broken native library does not raise, it kills the process (`tensorrt_lean` without a driver) or never
returns. So each probe is a function of this file that `run_probe` calls in a fresh interpreter, with a time
limit. A probe imports what it asks about inside its body, and emits what it knows as soon as it knows it:
what was emitted before a crash still counts.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PROBE_TIMEOUT_S = 30.0
IMPORTS_TIMEOUT_S = 180.0  # torch and transformers from a cold disk
ANSWER = "telecine-probe:"  # starts an answer's line: native libraries print on stdout too

# The child imports from where this process would, not from the working directory that `-c` puts first.
_BOOT = "import sys; sys.path[:] = sys.argv[4:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"

# One Identity node, (1,) float32, opset 13: the smallest graph that makes ONNX Runtime load a provider.
_IDENTITY_ONNX = "CAgSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="


@dataclass(frozen=True)
class Probe:
    """What a probe said last, and what went wrong with it if something did."""

    answer: dict[str, Any]
    problem: str | None = None


def run_probe(name: str, *args: str, timeout_s: float | None = None) -> Probe:
    """Call the probe `name` in a fresh interpreter. Raises nothing that the probe can cause."""
    if not sys.executable:
        return Probe({}, "this program has no Python executable to run the check with")
    limit = PROBE_TIMEOUT_S if timeout_s is None else timeout_s
    path = [entry for entry in sys.path if isinstance(entry, str)]
    command = [sys.executable, "-c", _BOOT, __file__, name, json.dumps(args), *path]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Probe({}, f"the check could not start: {error}")
    try:
        stdout, stderr = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired as expired:
        return Probe(_last_answer(_text(expired.stdout)), f"no answer within {limit:g} s")
    finally:
        _kill(child)
    answer = _last_answer(stdout)
    if child.returncode < 0:
        return Probe(answer, f"killed by {_signal_name(-child.returncode)}")
    if child.returncode > 0:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        return Probe(answer, lines[-1] if lines else f"exit status {child.returncode}")
    return Probe(answer, None if answer.get("done") else "the check ended without an answer")


def _kill(child: subprocess.Popen[str]) -> None:
    """End the child and what it started; it may already be gone, or be stuck in the kernel."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def _text(output: bytes | str | None) -> str:
    """TimeoutExpired carries bytes even from a text pipe."""
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def _last_answer(stdout: str) -> dict[str, Any]:
    for line in reversed(stdout.splitlines()):
        if line.startswith(ANSWER):
            try:
                return dict(json.loads(line[len(ANSWER) :]))
            except ValueError:  # cut short by the crash: the line before it is whole
                continue
    return {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


# What runs in the child.


def _emit(**answer: object) -> None:
    print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)


def probe_imports(*modules: str) -> None:
    """Import the modules in order; `loaded` tells how far it got, `cuda` which CUDA torch was built for."""
    loaded: dict[str, str] = {}
    cuda = None
    for name in modules:
        module = importlib.import_module(name)
        loaded[name] = str(getattr(module, "__version__", ""))
        if name == "torch":
            cuda = module.version.cuda
        _emit(loaded=loaded, cuda=cuda)
    _emit(loaded=loaded, cuda=cuda, done=True)


def probe_onnxruntime() -> None:
    """The version and the providers that this build was compiled with; a session proves that it runs."""
    runtime = importlib.import_module("onnxruntime")
    runtime.InferenceSession(base64.b64decode(_IDENTITY_ONNX), providers=["CPUExecutionProvider"])
    _emit(version=runtime.__version__, providers=runtime.get_available_providers(), done=True)


def probe_onnxruntime_cuda(provider: str = "CUDAExecutionProvider") -> None:
    """The providers that a session has which asked for CUDA: without it where CUDA or cuDNN does not load.

    As in the backend, those that pip's packages have are found by onnxruntime.preload_dlls().
    """
    runtime = importlib.import_module("onnxruntime")
    runtime.preload_dlls()
    wanted = [provider, "CPUExecutionProvider"]
    session = runtime.InferenceSession(base64.b64decode(_IDENTITY_ONNX), providers=wanted)
    _emit(providers=session.get_providers(), done=True)


def probe_gpu() -> None:
    """`driver` (the CUDA version it supports, None without one), `error` of cuInit, and `gpus`."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        _emit(driver=None, error=None, gpus=[], done=True)
        return
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))  # answers before cuInit
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    code = cuda.cuInit(0)
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        error = f"cuInit: {(name.value or b'error').decode()} ({code})"
        _emit(driver=driver, error=error, gpus=[], done=True)
        return
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = [_gpu(cuda, index) for index in range(count.value)]
    _emit(driver=driver, error=None, gpus=gpus, done=True)


def _gpu(cuda: ctypes.CDLL, index: int) -> dict[str, object]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return {
        "name": name.value.decode("utf-8", "replace"),
        "sm": f"{major.value}{minor.value}",
        "memory": memory.value,
    }


def probe_tensorrt(package: str) -> None:
    """The version of a TensorRT package that makes a runtime, which needs a GPU."""
    library = importlib.import_module(package)
    library.Runtime(library.Logger(library.Logger.ERROR))
    _emit(version=library.__version__, done=True)


def probe_cuda() -> None:
    """`compute_capability` of the first GPU as TensorRT sessions find it, or why they `refused` it and the `fix`."""
    from telecine.backends.cuda.device import Device
    from telecine.errors import BackendError

    try:
        capability = Device.open("auto").compute_capability
    except BackendError as error:
        _emit(refused=error.got, fix=error.fix, done=True)
    else:
        _emit(refused=None, compute_capability=capability, done=True)


def probe_video(*encoders: str) -> None:
    """PyAV's version and those of `encoders` that its FFmpeg lacks."""
    av = importlib.import_module("av")

    def has(name: str) -> bool:
        try:
            return bool(av.codec.Codec(name, "w"))
        except ValueError:  # UnknownCodecError is one
            return False

    _emit(version=av.__version__, missing=[name for name in encoders if not has(name)], done=True)


PROBES: dict[str, Callable[..., None]] = {
    "imports": probe_imports,
    "onnxruntime": probe_onnxruntime,
    "onnxruntime_cuda": probe_onnxruntime_cuda,
    "gpu": probe_gpu,
    "tensorrt": probe_tensorrt,
    "cuda": probe_cuda,
    "video": probe_video,
}


def _answer_one(name: str, args: list[str]) -> None:
    try:
        import resource
    except ImportError:
        pass
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer, not worth a core file
    PROBES[name](*args)


if __name__ == "__main__":
    _answer_one(sys.argv[2], json.loads(sys.argv[3]))
