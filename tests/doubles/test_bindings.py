"""The doubles offer what the real bindings do: every name, and every parameter by name and place.

The bindings of TensorRT 11 (full and lean) and of RTX install with no GPU; the first two load against libraries that do
nothing. For 10.9, `tensorrt_10_9.json` is what `bindings.py` said of tensorrt-cu12-bindings 10.9.0.34.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from doubles.bindings import CLASSES, Described, describe_in_a_process, stub_libraries
from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_module import make_tensorrt

RECORDED = Path(__file__).parent / "tensorrt_10_9.json"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    stub_libraries(folder, compiler)
    return folder


def installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def differences(double: ModuleType, real: Described) -> list[str]:
    """What the double has and the real package has not, or calls otherwise."""
    found = []
    for name in CLASSES:
        kind = getattr(double, name, None)
        if kind is None:
            continue
        if name not in real:
            found.append(f"there is no {name}")
            continue
        members = {member for base in kind.__mro__[:-1] for member in vars(base)} | {"__init__"}
        for member in sorted(members):
            if (member.startswith("_") and member != "__init__") or not _offered(kind, member):
                continue
            if member not in real[name]:
                found.append(f"there is no {name}.{member}")
            elif problem := _call(getattr(kind, member), real[name][member]):
                found.append(f"{name}.{member}{problem}")
    return found


def _offered(kind: type, member: str) -> bool:
    """Whether TensorRT's users see it: what the doubles need themselves is not in their classes' documentation."""
    if member in ("name", "value") or member in OWN.get(kind.__name__, ()):
        return False
    # An engine and a context are made by TensorRT alone; enumerations by nobody.
    return member != "__init__" or kind.__name__ in ("Runtime", "Refitter", "Weights")


# What the doubles' classes have for each other.
OWN = {
    "Runtime": ("cuda", "library", "version", "engine_class"),
    "ICudaEngine": ("context_class", "specs", "check_alive", "fail"),
}


def _call(ours: Any, theirs: list[list[str]] | None) -> str:
    if isinstance(ours, type):
        return ""
    if theirs is None or not callable(ours):
        return "" if theirs is None and not inspect.isfunction(ours) else " is a property in one, a method in the other"
    names = [name for name in inspect.signature(ours).parameters if name != "self"]
    return "" if names in theirs else f"({', '.join(names)}) is {theirs} there"


@pytest.mark.parametrize("package", ["tensorrt_bindings", "tensorrt_lean_bindings"])
def test_tensorrt_11(package: str, libraries: Path) -> None:
    installed(package)
    name = package.removesuffix("_bindings")
    assert differences(make_tensorrt(CudaDouble(), name), describe_in_a_process(package, libraries=libraries)) == []


def test_tensorrt_rtx() -> None:
    installed("tensorrt_rtx")
    assert differences(make_tensorrt(CudaDouble(), "tensorrt_rtx"), describe_in_a_process("tensorrt_rtx")) == []


def test_tensorrt_10() -> None:
    double = make_tensorrt(CudaDouble(), "tensorrt", "10.9.0.34")
    assert differences(double, json.loads(RECORDED.read_text())) == []


def test_what_11_dropped_is_only_in_10(libraries: Path) -> None:
    installed("tensorrt_bindings")
    real = describe_in_a_process("tensorrt_bindings", libraries=libraries)
    lost = differences(make_tensorrt(CudaDouble(), "tensorrt", "10.9.0.34"), real)
    assert lost == [
        "there is no ICudaEngine.create_execution_context_without_device_memory",
        "there is no ICudaEngine.device_memory_size",
        "there is no ICudaEngine.weight_streaming_budget",
    ]


def test_a_wrong_double_is_found() -> None:
    """These tests fail where they should."""
    double = make_tensorrt(CudaDouble(), "tensorrt", "10.9.0.34")
    real = json.loads(RECORDED.read_text())
    double.Refitter = type(  # type: ignore[attr-defined]
        "Refitter",
        (),
        {
            "__init__": lambda self, logger, engine: None,
            "get_every_weight": lambda self: None,
            "refit_cuda_engine": property(lambda self: None),
        },
    )
    assert differences(double, real) == [
        "Refitter.__init__(logger, engine) is [['engine', 'logger']] there",
        "there is no Refitter.get_every_weight",
        "Refitter.refit_cuda_engine is a property in one, a method in the other",
    ]


def test_cuda_runtime() -> None:
    """cuda.bindings.runtime: every function and constant of the double, in a process with the real one."""
    installed("cuda.bindings")
    code = """
import inspect, json
from cuda.bindings import runtime
def told(value):
    return list(inspect.signature(value).parameters) if callable(value) and not isinstance(value, type) else None
names = [name for name in dir(runtime) if name.startswith("cuda")]
enums = {name: {each.name: int(each) for each in getattr(runtime, name)}
         for name in ("cudaError_t", "cudaMemcpyKind", "cudaDeviceAttr", "cudaStreamCaptureMode")}
constants = ("cudaStreamNonBlocking", "cudaEventDefault", "cudaEventDisableTiming")
constants = {name: getattr(runtime, name) for name in constants}
print(json.dumps([{name: told(getattr(runtime, name)) for name in names}, enums, constants]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    functions, enums, constants = json.loads(done.stdout)
    double = CudaDouble()
    for name in dir(CudaDouble):
        member = getattr(double, name)
        if name in enums:
            assert {each.name: int(each) for each in member}.items() <= enums[name].items()
        elif name in constants:
            assert member == constants[name]
        elif name.startswith("cuda"):
            assert functions[name] == list(inspect.signature(member).parameters), name
