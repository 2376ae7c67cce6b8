"""telecine.doctor.backends, with libraries that crash, hang, or have no GPU."""

from __future__ import annotations

import time

import pytest

from telecine.doctor import CHECKS, backends, probes
from telecine.doctor.probes import Probe

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
NO_DRIVER = Probe({"driver": None, "error": None, "gpus": [], "done": True})
H200 = {"name": "NVIDIA H200", "sm": "90", "memory": 150_000_000_000}
ONE_GPU = Probe({"driver": "13.0", "error": None, "gpus": [H200], "done": True})


def has(*providers):
    """The answer of an ONNX Runtime probe with these providers."""
    names = [f"{name}ExecutionProvider" for name in providers]
    return Probe({"version": "1.31.1", "providers": names, "done": True})


def test_both_onnxruntimes(site, make_machine):
    site.version("onnxruntime", "1.31.1")
    site.version("onnxruntime-gpu", "1.31.0")
    (check,) = backends.check_onnxruntime(make_machine())
    assert check.status == "fail"
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.31.0" in check.found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.fix
    assert 'pip install "telecine[onnxruntime]"' in check.fix


@pytest.mark.parametrize(
    ("purpose", "gpu", "extra"),
    [
        ("runtime", NO_DRIVER, "onnxruntime"),
        ("runtime", ONE_GPU, "onnxruntime-gpu"),
        ("export", ONE_GPU, "export"),
    ],
)
def test_no_onnxruntime(installed, purpose, gpu, extra, make_machine):
    installed()
    (check,) = backends.check_onnxruntime(make_machine(purpose, gpu=gpu))
    assert (check.status, check.found) == ("fail", "not installed")
    assert f'pip install "telecine[{extra}]"' in check.fix


def test_an_old_onnxruntime_is_not_even_loaded(installed, site, make_machine):
    site("onnxruntime", CRASH)
    installed(onnxruntime_gpu="1.20.1")
    (check,) = backends.check_onnxruntime(make_machine(minimums={"onnxruntime-gpu": {"onnxruntime-gpu": "1.23"}}))
    assert (check.status, check.found) == ("fail", "1.20.1, older than 1.23")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (CRASH, "killed by SIGSEGV"),
        ("raise ImportError('libonnxruntime.so: bad ELF')", "ImportError: libonnxruntime.so: bad ELF"),
        ("", "has no attribute 'InferenceSession'"),  # what uninstalling one of the two leaves
        ("raise SystemExit(0)", "without an answer"),
    ],
)
def test_a_broken_onnxruntime(site, installed, body, says, make_machine, assert_actionable, only):
    site("onnxruntime", body)
    installed(onnxruntime="1.31.1")
    checks = backends.check_onnxruntime(make_machine())
    assert_actionable(checks)
    check = only(checks, "ONNX Runtime")
    assert (check.status, says in check.found) == ("fail", True), check.found


@pytest.mark.parametrize(
    ("gpu", "session", "status", "says"),
    [
        (NO_DRIVER, None, "warn", "no NVIDIA GPU"),
        (ONE_GPU, has("CUDA", "CPU"), "ok", "loads on the GPU"),
        (ONE_GPU, has("CPU"), "warn", "fell back"),
        (ONE_GPU, Probe({}, "killed by SIGABRT"), "warn", "SIGABRT"),
    ],
)
def test_cuda_is_listed(installed, answers, gpu, session, status, says, make_machine, assert_actionable, only):
    installed(onnxruntime_gpu="1.31.1")
    answers(onnxruntime=has("CUDA", "CPU"), onnxruntime_cuda=session)
    checks = backends.check_onnxruntime(make_machine(gpu=gpu))
    assert_actionable(checks)
    check = only(checks, "ONNX Runtime CUDA")
    assert (check.status, says in check.found) == (status, True), check.found
    assert len(backends.check_onnxruntime(make_machine("export", gpu=gpu))) == len(checks) - 1


def test_a_cpu_build_beside_a_gpu(installed, answers, make_machine, only):
    installed(onnxruntime="1.31.1")
    answers(onnxruntime=has("CPU"))
    check = only(backends.check_onnxruntime(make_machine(gpu=ONE_GPU)), "ONNX Runtime CUDA")
    assert (check.status, "onnxruntime-gpu" in check.fix) == ("info", True)


def test_av_is_missing(installed, make_machine):
    installed()
    (check,) = backends.check_video(make_machine())
    assert (check.status, check.found) == ("warn", "not installed")
    assert 'pip install "telecine[video]"' in check.fix


def test_av_does_not_import(site, installed, make_machine, only):
    site("av", "raise ModuleNotFoundError(\"No module named 'av'\")")
    installed(av="18.1.0")
    check = only(backends.check_video(make_machine()), "Video")
    assert (check.status, "No module named 'av'" in check.found) == ("warn", True)


def test_av_without_an_encoder(monkeypatch, make_machine, only):
    pytest.importorskip("av")
    monkeypatch.setattr(backends, "ENCODERS", ("gif", "libno264"))
    check = only(backends.check_video(make_machine()), "Video")
    assert (check.status, check.found) == ("warn", "no encoder libno264")


def test_a_probe_that_hangs(site, installed, monkeypatch, make_machine, only):
    site("av", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)")
    installed(av="18.1.0")
    monkeypatch.setattr(probes, "PROBE_TIMEOUT_S", 0.5)
    start = time.monotonic()
    check = only(backends.check_video(make_machine()), "Video")
    assert (check.status, "no answer within 0.5 s" in check.found) == ("warn", True)
    assert check.fix
    assert time.monotonic() - start < 5


def test_tensorrt(site, installed, make_machine, assert_actionable):
    site("tensorrt_rtx", "__version__ = '1.7.1'")
    site("tensorrt_lean", CRASH)
    installed(tensorrt_rtx="1.7.1.116", tensorrt_lean_cu13="11.4.0")
    checks = backends.check_tensorrt(make_machine("build"))
    assert_actionable(checks)
    assert [(check.name, check.status, check.found) for check in checks] == [
        ("tensorrt-rtx", "info", "1.7.1.116, loads; it runs engines where there is an NVIDIA GPU"),
        ("tensorrt-lean", "warn", "11.4.0 does not load: killed by SIGSEGV"),
    ]


RUNTIME = """
__version__ = "11.4.0"
class Logger:
    ERROR = 1
    def __init__(self, severity): pass
"""


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("class Runtime:\n    def __init__(self, logger): pass", "ok", "11.4.0, makes a runtime on the GPU"),
        (f"def Runtime(logger):\n    {CRASH}", "warn", "11.4.0 does not load: killed by SIGSEGV"),
    ],
)
def test_tensorrt_on_a_gpu(site, installed, make_machine, assert_actionable, body, status, says):
    site("tensorrt", RUNTIME + body)
    installed(tensorrt="11.4.0")
    checks = backends.check_tensorrt(make_machine(gpu=ONE_GPU))
    assert_actionable(checks)
    assert [(check.status, check.found) for check in checks] == [(status, says)]


FOUND = {"refused": None, "compute_capability": "8.9", "done": True}
REFUSED = {"refused": "there is no NVIDIA driver", "fix": "Install the NVIDIA driver.", "done": True}


@pytest.mark.parametrize(
    ("versions", "probe", "expected"),
    [
        ({}, None, []),
        ({"tensorrt": "11.4.0"}, None, [("cuda-bindings", "warn", "not installed")]),
        (
            {"tensorrt_rtx": "1.7.1", "cuda_bindings": "13.0"},
            Probe(FOUND),
            [("cuda-bindings", "ok", "13.0"), ("CUDA", "ok", "trt-sm89 or rtx-sm89")],
        ),
        (
            {"tensorrt_lean_cu13": "11.4.0", "cuda_bindings": "13.0"},
            Probe(REFUSED),
            [("cuda-bindings", "ok", "13.0"), ("CUDA", "warn", "there is no NVIDIA driver: no engine runs")],
        ),
        (
            {"tensorrt": "11.4.0", "cuda_bindings": "13.0"},
            Probe({}, "killed by SIGSEGV"),
            [("cuda-bindings", "ok", "13.0"), ("CUDA", "warn", "does not load: killed by SIGSEGV")],
        ),
    ],
)
def test_cuda(installed, answers, make_machine, assert_actionable, versions, probe, expected):
    installed(**versions)
    answers(cuda=probe)
    checks = backends.check_cuda(make_machine(minimums={}))
    assert_actionable(checks)
    assert [(check.name, check.status) for check in checks] == [(name, status) for name, status, _ in expected]
    for check, (_, _, says) in zip(checks, expected, strict=True):
        assert says in check.found


def test_cuda_is_asked_as_sessions_ask_it():
    """The real probe, wherever this runs: an answer in either case, and no crash."""
    probe = probes.run_probe("cuda")
    assert probe.problem is None
    assert probe.answer["refused"] is None or probe.answer["fix"]


@pytest.mark.parametrize(
    ("versions", "status", "says"),
    [
        ({}, "warn", "no TensorRT that builds"),
        ({"tensorrt_lean": "11.4.0"}, "warn", "no TensorRT that builds"),
        ({"tensorrt_cu13": "11.4.0", "tensorrt_rtx": "1.7.1"}, "ok", "telecine build uses tensorrt, tensorrt-rtx"),
    ],
)
def test_what_builds(installed, make_machine, assert_actionable, versions, status, says):
    assert backends.check_engines in CHECKS["build"]
    installed(**versions)
    check = backends.check_engines(make_machine("build"))
    assert_actionable([check])
    assert (check.status, says in check.found) == (status, True), check.found
