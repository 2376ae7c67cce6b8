"""Who may import whom: the runtime knows neither the exporter nor torch, and pure modules know NumPy alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TORCH_SIDE = {"torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "telecine_export"}
LOADED_LATE = {"onnxruntime", "av", "PIL", "tensorrt", "tensorrt_rtx", "tensorrt_lean", "cuda"}  # inside functions
PURE = (
    "shapes", "latents", "rope", "guidance", "per_step", "noise", "pixels", "conditioning", "tiling", "denoise",
    "linear_step", "schedulers", "upsampling", "resample", "interpolate", "picture_quality", "overridable",
)  # fmt: skip
IMPURE_STDLIB = {"io", "logging", "os", "pathlib", "random", "shutil", "socket", "subprocess", "tempfile", "time"}


class Import(NamedTuple):
    module: str
    names: tuple[str, ...]
    late: bool  # inside a function

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(source: str, package: str = "") -> Iterator[Import]:
    """Every import of a module's source, those for type checkers too; `package` resolves relative ones."""

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(name.name, (), late) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield Import(module, tuple(name.name for name in node.names), late)
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, late)

    return walk(ast.parse(source), late=False)


def imports_of(path: Path, root: Path) -> list[Import]:
    return list(imports(path.read_text(encoding="utf-8"), ".".join(path.relative_to(root).parent.parts)))


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pure_modules() -> list[Path]:
    root = ROOT / "runtime" / "telecine"
    return [path for path in modules("runtime/telecine") if path.relative_to(root).with_suffix("").parts[0] in PURE]


@pytest.mark.parametrize("path", modules("runtime"), ids=name_of)
def test_the_runtime_stands_alone(path: Path) -> None:
    command_line = path.parent == ROOT / "runtime" / "telecine" / "cli"
    for found in imports_of(path, ROOT / "runtime"):
        if found.late and command_line and found.top in ("telecine_export", "telecine_engines"):
            continue  # the body of `export`, `verify` or `build`
        assert found.top not in TORCH_SIDE | {"telecine_engines"}, found
        assert found.late or found.top not in LOADED_LATE, found


@pytest.mark.parametrize("path", pure_modules(), ids=name_of)
def test_pure_modules_import_numpy_and_each_other(path: Path) -> None:
    for found in imports_of(path, ROOT / "runtime"):
        if found.top == "telecine":
            # `from telecine.shapes import Grid` and `from telecine import shapes` are both about shapes.
            targets = [found.module.split(".")[1]] if "." in found.module else found.names
            assert targets, found
            assert set(targets) <= {*PURE, "errors"}, found
        else:
            assert found.top == "numpy" or found.top in sys.stdlib_module_names - IMPURE_STDLIB, found


@pytest.mark.parametrize("path", modules("engines"), ids=name_of)
def test_engines_are_built_without_torch_or_onnx(path: Path) -> None:
    assert not {found.top for found in imports_of(path, ROOT / "engines")} & TORCH_SIDE


@pytest.mark.parametrize("path", modules("export"), ids=name_of)
def test_the_exporter_does_not_know_the_engines(path: Path) -> None:
    assert "telecine_engines" not in {found.top for found in imports_of(path, ROOT / "export")}


def test_these_tests_see_every_kind_of_import() -> None:
    source = """
import torch.nn as nn
from . import errors
if TYPE_CHECKING:
    from ..export import x
class A:
    import av
    def f(self):
        from onnx import helper
"""
    assert list(imports(source, "telecine.video")) == [
        Import("torch.nn", (), False),
        Import("telecine.video", ("errors",), False),
        Import("telecine.export", ("x",), False),
        Import("av", (), False),
        Import("onnx", ("helper",), True),
    ]
    assert len(pure_modules()) >= 7
