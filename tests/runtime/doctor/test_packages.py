"""telecine.doctor.packages, against packages that lie in a folder on sys.path."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from telecine.doctor import packages


def test_minimums_come_from_the_metadata(site):
    site.version(
        "telecine",
        "9.9",
        "numpy>=1.26",
        "onnx_ir>=1.1; extra == 'export'",
        'torch!=3,>=2.13 ; extra == "export"',
        "tqdm; extra == 'export'",
    )
    assert packages.minimums() == {
        "": {"numpy": "1.26"},
        "export": {"onnx-ir": "1.1", "torch": "2.13", "tqdm": ""},
    }


def test_not_installed_as_a_distribution(monkeypatch, installed, make_machine):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    installed(numpy="0.1", click="8", safetensors="1", tokenizers="1")
    here = make_machine()
    check = packages.check_distribution(here)
    assert (check.status, "minimum versions are not checked" in check.found) == ("warn", True)
    assert {check.status for check in packages.check_packages(here)} == {"ok"}


def test_the_stand_in_table_is_what_pyproject_says():
    tomllib = pytest.importorskip("tomllib")
    file = Path(__file__).parents[3] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, names in packages.PACKAGES.items():
        wanted = {re.match(r"[\w-]+", line)[0].replace("_", "-") for line in extras[extra]}
        assert set(names) == wanted, extra


def test_missing_and_too_old_packages(installed, make_machine, assert_actionable, only):
    installed(torch="2.9.1+cpu", numpy="2.0", click="8.1.0")
    minimums = {"": {"numpy": "1.26", "click": "8.1"}, "export": {"torch": "2.13", "diffusers": "0.42.1"}}
    checks = packages.check_packages(make_machine("export", minimums=minimums))
    assert_actionable(checks)
    assert [check.status for check in checks] == ["ok", "ok", "fail", "fail"]
    assert only(checks, "torch").found == "2.9.1+cpu, older than 2.13"
    assert '"torch>=2.13"' in only(checks, "torch").fix
    assert 'pip install "telecine[export]"' in only(checks, "diffusers").fix


@pytest.mark.parametrize(
    ("older", "newer"),
    [("2.9.1", "2.13"), ("1.23rc1", "1.24"), ("0.42", "0.42.1"), ("1.9.9+cu130", "2"), ("unknown", "0.1")],
)
def test_versions_compare_as_numbers(older, newer):
    assert packages._release(older) < packages._release(newer)
    assert packages._release("1.23.0") == packages._release("1.23") == packages._release("1.23.0+cpu")


def test_an_installed_package_that_does_not_load(site, installed, make_machine):
    site("numpy", "raise ImportError('libblas.so.3: cannot open shared object file')")
    installed(click="8", numpy="2")
    (check,) = packages.check_imports(make_machine(minimums={"": {"click": "", "numpy": ""}}))
    assert check.status == "fail"
    assert "importing numpy: ImportError: libblas.so.3" in check.found
    assert "pip install --force-reinstall numpy" in check.fix
