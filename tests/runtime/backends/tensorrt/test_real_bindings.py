"""What of the runtime meets TensorRT's real bindings without a GPU, in processes of their own: log, buffers, weights.

An engine is never deserialised here: RTX reads plans back on a GPU only. It refuses, and says why through our log.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.bindings import stub_libraries

REFUSAL = """
import mmap, sys
from telecine.backends.tensorrt.library import load_library
library = load_library("tensorrt_rtx")
runtime = library.module.Runtime(library.log)
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    assert runtime.deserialize_cuda_engine(content) is None
said = library.errors()
assert said != "it gives no reason", said
assert library.errors() == "it gives no reason"
print(library.version)
"""

VALUES = """
import numpy as np
from telecine.backends.tensorrt import library
trt = __import__("PACKAGE")
made = library.Library(name="tensorrt", module=trt, version=trt.__version__, log=library._log(trt))
for name in library.DATA_TYPES:
    assert made.data_type(name) is not None, name
array = np.arange(6, dtype=np.float32)
weights = trt.Weights(made.data_type("float32"), array.ctypes.data, array.size)
assert (weights.size, weights.nbytes) == (6, 24)
np.testing.assert_array_equal(weights.numpy(), array)
assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
assert made.data_type("float128") is None
made.log.log(trt.ILogger.ERROR, "one  error")
made.log.log(trt.ILogger.WARNING, "a warning")
assert made.errors() == "one error"
print("done")
"""


def run(code: str, *arguments: object, libraries: Path | None = None) -> str:
    environment = os.environ | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_rtx_refuses_through_our_log(tmp_path: Path) -> None:
    need("tensorrt_rtx")
    (tmp_path / "a.plan").write_bytes(b"no plan" * 1000)
    assert run(REFUSAL, tmp_path / "a.plan")[0].isdecimal()


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt_bindings", "tensorrt_lean_bindings"])
def test_types_weights_and_log(package: str, tmp_path: Path) -> None:
    need(package)
    libraries = None
    if package != "tensorrt_rtx":
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        stub_libraries(tmp_path, compiler)
        libraries = tmp_path
    assert run(VALUES.replace("PACKAGE", package), libraries=libraries) == "done"
