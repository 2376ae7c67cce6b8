"""CUDA, asked before it is used: what is missing or too old is told, and every status code is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t
from doubles.install import install_cuda

from telecine.backends.cuda.device import Device
from telecine.backends.cuda.library import Cuda
from telecine.errors import BackendError

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("driver", "runtime", "words"),
    [
        (0, 13000, "there is no NVIDIA driver"),
        (12090, 13000, r"driver is for CUDA 12.9, the CUDA runtime is 13.0; expected a driver for CUDA 13.*>=12,<13"),
        (11080, 12060, r"driver is for CUDA 11.8, the CUDA runtime is 12.6; expected a driver for CUDA 12"),
    ],
)
def test_drivers(monkeypatch: pytest.MonkeyPatch, driver: int, runtime: int, words: str) -> None:
    double = install_cuda(monkeypatch, CudaDouble(driver=driver, runtime=runtime))
    with pytest.raises(BackendError, match=words):
        Cuda.load()
    assert not [name for name in double.calls if "Malloc" in name or "Set" in name]


@pytest.mark.parametrize(("driver", "runtime"), [(13000, 13050), (13050, 13000), (13000, 12060)])
def test_minor_versions_and_older_runtimes_are_fine(monkeypatch: pytest.MonkeyPatch, driver: int, runtime: int) -> None:
    install_cuda(monkeypatch, CudaDouble(driver=driver, runtime=runtime))
    Cuda.load()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (cudaError_t.cudaErrorInsufficientDriver, "the NVIDIA driver is for CUDA"),
        (cudaError_t.cudaErrorNoDevice, "there is no NVIDIA GPU"),
        (cudaError_t.cudaErrorIllegalAddress, r"cudaGetDeviceCount failed: cudaErrorIllegalAddress \(700\)"),
    ],
)
def test_no_devices(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    install_cuda(monkeypatch, CudaDouble()).failures["cudaGetDeviceCount"] = code
    with pytest.raises(BackendError, match=words):
        Cuda.load()


def test_status_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    double = install_cuda(monkeypatch, CudaDouble())
    cuda = Cuda.load()
    double.failures["cudaSetDevice"] = 101
    with pytest.raises(BackendError, match=r"cudaSetDevice failed: cudaErrorInvalidDevice \(101\).*telecine doctor"):
        cuda.call("cudaSetDevice", 0)
    double.failures["cudaMalloc"] = 2
    with pytest.raises(BackendError, match="out of memory: CUDA, in cudaMalloc.*fewer frames"):
        cuda.call("cudaMalloc", 1)


@pytest.mark.parametrize(
    ("name", "index", "capability"),
    [("auto", 0, "8.9"), ("cuda", 0, "8.9"), ("cuda:1", 1, "12.0")],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, name: str, index: int, capability: str) -> None:
    install_cuda(monkeypatch, CudaDouble(capabilities=("8.9", "12.0")))
    device = Device.open(name)
    assert (device.index, device.compute_capability) == (index, capability)


@pytest.mark.parametrize("name", ["cuda:2", "cpu"])
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install_cuda(monkeypatch, CudaDouble(capabilities=("8.9", "12.0")))
    with pytest.raises(BackendError, match=f"device '?{name}"):
        Device.open(name)


def test_the_real_bindings_without_a_driver() -> None:
    """In a process of its own: nothing here may crash it. On a machine with a GPU there is nothing to refuse."""
    pytest.importorskip("cuda.bindings")
    code = """
from cuda.bindings import runtime
from telecine.backends.cuda.device import Device
from telecine.errors import BackendError
try:
    Device.open("auto")
    print("a GPU")
except BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("a GPU", "there is no NVIDIA", "the NVIDIA driver is for"))
