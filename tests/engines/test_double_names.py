"""The double's names and parameters are the bindings': of TensorRT for RTX, and of TensorRT 11 over empty libraries."""

from __future__ import annotations

import enum
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from doubles.tensorrt_builder import CLASSES

# What tensorrt_bindings links against; nothing of it is called.
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
# {class: {member: its documentation, which pybind11 begins with the signature, or with those of all overloads}}
DUMP = """
import importlib, json, sys
api = importlib.import_module(sys.argv[1])
print(json.dumps({
    name: {member: getattr(getattr(api, name), member).__doc__ or "" for member in dir(getattr(api, name))}
    for name in sys.argv[2:] if hasattr(api, name)
}))
"""


def describe(package: str, environment: dict[str, str]) -> dict[str, dict[str, str]]:
    names = [each.__name__ for each in CLASSES]
    done = subprocess.run(
        [sys.executable, "-c", DUMP, package, *names], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module", params=["tensorrt_rtx", "tensorrt_bindings"])
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt_rtx":
        return describe(request.param, dict(os.environ))
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make empty libraries with")
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for library in LIBRARIES:
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True)
    return describe(request.param, os.environ | {"LD_LIBRARY_PATH": str(folder)})


def public(each: type) -> dict[str, Any]:
    """Members that stand in the class itself, of an enum its names."""
    if issubclass(each, enum.Enum) and each.__name__ != "Severity":
        return dict.fromkeys(each.__members__)
    return {name: value for name, value in vars(each).items() if not name.startswith("_")}


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_names_and_parameters(each: type, bindings: dict[str, dict[str, str]]) -> None:
    assert each.__name__ in bindings
    real = bindings[each.__name__]
    for name, value in public(each).items():
        if name in ("cuda", "version"):  # the double's own
            continue
        assert name in real, f"{each.__name__} has no {name}"
        if inspect.isfunction(value):
            ours = [parameter for parameter in inspect.signature(value).parameters if parameter != "self"]
            signatures = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", real[name], re.MULTILINE)
            theirs = [re.findall(r"(\w+): ", signature) for signature in signatures]
            assert ["self", *ours] in theirs, (name, real[name])


def test_tensorrt_has_no_compute_capabilities_to_choose(bindings: dict[str, dict[str, str]]) -> None:
    """It builds for the GPU that is there: `num_compute_capabilities` is TensorRT for RTX's alone."""
    is_rtx = "num_compute_capabilities" in bindings["IBuilderConfig"]
    assert is_rtx == ("REQUIRE_USER_ALLOCATION" in bindings["BuilderFlag"])
