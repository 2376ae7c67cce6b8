"""Machines that are broken on purpose.

Faults are real where they can be: packages that crash, hang or are too old lie in a folder on sys.path (which
the probes' processes inherit), and the NVIDIA driver is a small C library.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from telecine.doctor import as_text, packages, probes
from telecine.doctor.check import Check, Machine
from telecine.doctor.probes import Probe

NO_DRIVER = Probe({"driver": None, "error": None, "gpus": [], "done": True})


@pytest.fixture
def make_machine():
    def make(purpose="runtime", path=None, gpu=NO_DRIVER, minimums=None):
        minimums = packages.minimums() if minimums is None else minimums
        return Machine(purpose=purpose, path=path or Path(), gpu=gpu, minimums=minimums)

    return make


@pytest.fixture
def assert_actionable():
    def check_all(checks):
        assert all(isinstance(check, Check) for check in checks)
        assert all(check.found for check in checks)
        assert all(check.fix for check in checks if check.status in ("warn", "fail"))

    return check_all


@pytest.fixture
def only():
    """`only(checks, name)`: the one check of that name."""

    def find(checks, name):
        found = [check for check in checks if check.name == name]
        assert len(found) == 1, as_text(checks)
        return found[0]

    return find


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Put packages in front of all others: `site("av", "raise ...")`, `site.version("av", "1.0")`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def module(name, body):
        (folder / f"{name}.py").write_text(body)

    def version(name, number, *requires):
        info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")

    module.version = version
    return module


@pytest.fixture
def installed(monkeypatch):
    """Make doctor believe that these distributions, and no others, are installed."""

    def only_these(**versions):
        monkeypatch.setattr(packages, "installed", lambda name: versions.get(name.replace("-", "_")))

    return only_these


@pytest.fixture
def answers(monkeypatch):
    """Give these probes' answers in place of running them."""

    def stub(**by_name):
        monkeypatch.setattr(probes, "run_probe", lambda name, *args, timeout_s=None: by_name[name])

    return stub
