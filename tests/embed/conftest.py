"""The C++ library, its example and the checks beside this file, compiled once."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Debian's pybind11-dev; elsewhere it is a package of the environment.
SYSTEM_PYBIND11 = Path("/usr/include/pybind11")


def missing() -> str | None:
    """What this machine lacks to compile them."""
    if not shutil.which("cmake"):
        return "no cmake"
    if not (shutil.which("c++") or shutil.which("g++")):
        return "no C++ compiler"
    if not (importlib.util.find_spec("pybind11") or SYSTEM_PYBIND11.is_dir()):
        return "no pybind11"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return "this Python has no shared libpython"
    return None


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder, with `checks` and `embed/telecine_service` in it."""
    lack = missing()
    if lack:
        pytest.skip(f"{lack}: the C++ library cannot be compiled")
    build = tmp_path_factory.mktemp("embed")
    configure = ["cmake", "-S", str(HERE), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
    # Not optimised: that would take half as long again.
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stderr, done.stderr
    return build


@pytest.fixture(scope="session")
def run_alone() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program without this process's environment: it finds everything by its arguments."""

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        # One arena: threads that come and go would each begin another one, and what it holds is not a leak.
        alone = {"OMP_NUM_THREADS": "1", "LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=alone, cwd="/", timeout=300)

    return run


@pytest.fixture(scope="session")
def check(compiled: Path, run_alone: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """`check(name, bundle, ...)`: run one of the C++ checks in a process of its own; what it printed."""

    def run(name: str, *arguments: object) -> str:
        done = run_alone(compiled / "checks", name, sys.prefix, ROOT / "runtime", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
