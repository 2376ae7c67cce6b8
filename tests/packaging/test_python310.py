"""The runtime runs on Python 3.10: NVIDIA's JetPack 6 has no newer one."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "runtime").rglob("*.py"))

# Compiles each file, and resolves what it imports from the standard library; writes nothing.
CHECK = """
import ast, importlib, sys
assert sys.version_info[:2] == (3, 10), sys.version
for path in sys.argv[1:]:
    tree = ast.parse(open(path, encoding="utf-8").read(), path)
    compile(tree, path, "exec", dont_inherit=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in sys.stdlib_module_names:
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in sys.stdlib_module_names:
                    importlib.import_module(name.name)
"""


def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def python310() -> str:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    installed = sorted(pyenv.glob("3.10*/bin/python"))
    found = str(installed[-1]) if installed else shutil.which("python3.10")
    if not found:
        pytest.skip("no Python 3.10 here")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "runtime")))
def test_the_syntax_is_that_of_310(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_lint_checks_for_310() -> None:
    """ruff finds younger syntax, mypy a younger standard library: `make lint` runs both."""
    content = pyproject()
    assert content["project"]["requires-python"] == ">=3.10"
    assert content["tool"]["ruff"]["target-version"] == "py310"
    assert content["tool"]["mypy"]["python_version"] == "3.10"
    assert "runtime" in content["tool"]["mypy"]["files"]


def test_python_310_compiles_it_and_has_what_it_imports(python310: str) -> None:
    done = subprocess.run(
        [python310, "-I", "-c", CHECK, *map(str, SOURCES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["newest", "oldest"])
def test_python_310_generates(
    versions: str,
    python310: str,
    make_environment: Callable[..., Any],
    tiny_bundle: Path,
    frames_here: np.ndarray,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """With the newest packages that there are for 3.10, and with the oldest that pyproject.toml allows."""
    constraints = None
    if versions == "oldest":
        project = pyproject()["project"]
        extras = project["optional-dependencies"]
        ranges = [*project["dependencies"], *extras["onnxruntime"], *extras["video"]]
        constraints = tmp_path / "oldest.txt"
        constraints.write_text("".join(re.sub(r">=([\d.]+)$", r"==\1", line) + "\n" for line in ranges))
        assert constraints.read_text().count("==") == len(ranges)
    environment = make_environment(python310, constraints=constraints)
    assert environment.python("import sys; print(*sys.version_info[:2])") == "3 10"
    frames = environment.generate(tiny_bundle)
    assert frames.shape == frames_here.shape
    difference = int(np.abs(frames.astype(int) - frames_here).max())
    assert difference <= 1  # other kernels may round a value that lies between two bytes to the other one
    names = ("onnxruntime", "numpy", "av", "tokenizers", "safetensors", "click")
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {names}), sep=', ')"
    record_property(
        "measured", f"Python 3.10, {versions} packages ({environment.python(code)}): within {difference}/255"
    )
