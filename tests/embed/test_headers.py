"""The C++ headers have what the Python package has, by the same names: nothing can be forgotten on either side."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from embed_requests import REQUESTS

import telecine
from telecine import errors
from telecine.families import FAMILIES
from telecine.pipeline import Pipeline
from telecine.second_stage import UPSAMPLING

EMBED = Path(__file__).parents[2] / "runtime" / "embed"


def parameters(function: object, *without: str) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", *without}  # type: ignore[arg-type]


# C++'s names of what Python takes. `callback` is RunOptions'.
PYTHONS = {
    "Request": parameters(Pipeline.generate, "callback"),
    "SecondStage": {
        *UPSAMPLING,
        *(name for family in FAMILIES.values() if family.two_stage for name in family.two_stage.refinement),
    },
    "LoadOptions": parameters(telecine.load, "path"),
    "OnnxRuntimeOptions": {field.name for field in dataclasses.fields(telecine.OnnxRuntimeOptions)},
}


@pytest.mark.parametrize("name", PYTHONS)
def test_a_struct_has_pythons_parameters(name: str) -> None:
    headers = "".join(path.read_text() for path in (EMBED / "include").rglob("*.hpp"))
    body = re.search(rf"^struct {name} {{$(.*?)^}};$", headers, re.MULTILINE | re.DOTALL)
    assert body
    fields = re.findall(r"^ +std::optional<.*> (\w+);", body[1], re.MULTILINE)
    assert sorted(fields) == sorted(PYTHONS[name])


@pytest.mark.parametrize("name", PYTHONS)
def test_each_of_them_is_passed_on(name: str) -> None:
    source = (EMBED / "src" / "to_python.hpp").read_text()
    body = re.search(
        rf"^inline py::dict parameters\(const {name}& from\) {{$(.*?)^}}$", source, re.MULTILINE | re.DOTALL
    )
    assert body
    assert sorted(re.findall(r"TELECINE_SET\((\w+)\)", body[1])) == sorted(PYTHONS[name])


# Faults are provoked by them: the demo model's family has none of them but `video`.
PROVOKED = {"video", *FAMILIES["ltx-video"].refuses}


def test_the_tests_set_them_all() -> None:
    assert {name for request in REQUESTS.values() for name in request} == PYTHONS["Request"] - PROVOKED
    faults = (Path(__file__).parent / "faults.cpp").read_text()
    assert all(f"r.{name} = " in faults for name in PROVOKED)
    stages = [request.get("second_stage", {}) for request in REQUESTS.values()]
    set_in_stages = set(re.findall(r"stage\.(\w+) = ", faults))
    assert {name for stage in stages for name in stage} == PYTHONS["SecondStage"] - set_in_stages


def test_every_error_has_its_exception() -> None:
    kinds = {kind.__name__ for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)}
    kinds.remove("TelecineError")  # is Error
    header = (EMBED / "include" / "telecine" / "errors.hpp").read_text()
    assert set(re.findall(r"class TELECINE_API (\w+) : public Error", header)) == kinds
    source = (EMBED / "src" / "python.hpp").read_text()
    assert {kind for kind, raised in re.findall(r'is\("(\w+)"\)\) raise<(\w+)>', source) if kind == raised} == kinds
