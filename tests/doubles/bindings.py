"""What the real bindings offer: the members of a package's classes, and the parameters that their docstrings tell.

Run as a program it prints that of one package as JSON: bindings crash, or want libraries, that tests must survive.

    python bindings.py PACKAGE
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CLASSES = (
    "DataType", "TensorLocation", "ExecutionContextAllocationStrategy", "ILogger", "Weights", "Runtime", "ICudaEngine",
    "IExecutionContext", "Refitter", "IRuntimeConfig", "IRuntimeCache", "CudaGraphStrategy",
)  # fmt: skip
# All that the bindings of TensorRT call: they load against libraries that have no more than these names.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvinfer_lean")
Described = dict[str, dict[str, Any]]


def describe(package: str) -> Described:
    """Class → member → None for a property, else the parameter names of each overload, without self."""
    module = importlib.import_module(package)
    found: Described = {}
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is not None:
            members = [member for member in dir(kind) if not member.startswith("__") or member == "__init__"]
            found[name] = {member: _overloads(getattr(kind, member), member) for member in members}
    return found


def _overloads(member: Any, name: str) -> list[list[str]] | None:
    if not callable(member):
        return None
    lines = [line for line in (member.__doc__ or "").splitlines() if re.match(rf"(\d+\. )?{name}\(", line)]
    signatures = [line for line in lines if "*args" not in line]
    return [[each for each in _parameters(line) if each != "self"] for line in signatures]


def _parameters(signature: str) -> list[str]:
    """Names out of `name(self: A, shape: tuple[int, int] = (1, 2)) -> B`: those that start a parameter."""
    depth, names, start = 0, [], True
    inside = signature[signature.index("(") + 1 : signature.rindex(")", 0, signature.rindex("->"))]
    for place, character in enumerate(inside):
        if start and (word := re.match(r"\s*(\w+)", inside[place:])):
            names.append(word[1])
            start = False
        depth += (character in "([{<") - (character in ")]}" or (character == ">" and inside[place - 1] != "-"))
        start = start or (character == "," and depth == 0)
    return names


def stub_libraries(folder: Path, compiler: str) -> None:
    """Shared libraries under TensorRT's names that do nothing, for bindings whose libraries are not installed."""
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for name in LIBRARIES:
        file = f"lib{name}.so.11"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(folder / file), str(source)], check=True
        )


def describe_in_a_process(package: str, *, libraries: Path | None = None) -> Described:
    """As `describe`, where it cannot do harm."""
    environment = os.environ | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    done = subprocess.run(
        [sys.executable, __file__, package], env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise ImportError(done.stderr[-500:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
