"""telecine.doctor as a whole, against this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from telecine import doctor
from telecine.doctor import Check
from telecine.errors import RequestError


@pytest.mark.parametrize("purpose", doctor.PURPOSES)
def test_this_machine(purpose, tmp_path, assert_actionable, only):
    checks = doctor.examine(purpose, path=tmp_path / "not" / "there" / "yet")
    assert_actionable(checks)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"Python", "System", "numpy", "Imports", "NVIDIA driver", "Disk", "Memory", "Cache"} <= set(names)
    assert not (tmp_path / "not").exists()
    assert only(checks, "Imports").status == "ok"
    text = doctor.as_text(checks)
    assert len(text.splitlines()) == len(checks) + sum(check.fix is not None for check in checks)


def test_an_unknown_purpose_lists_the_known_ones():
    with pytest.raises(RequestError, match="runtime, export, build"):
        doctor.examine("training")


def test_importing_doctor_is_cheap():
    heavy = "{'numpy', 'click', 'onnxruntime', 'av', 'torch'}"
    code = f"import sys, telecine.doctor; print(*{heavy} & set(sys.modules))"
    root = str(Path(doctor.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout.strip() == ""


def test_text():
    fine = Check(name="Python", status="ok", found="3.11.7")
    slow = Check(name="Disk", status="warn", found="1 GiB\nfree", fix="Free some space.")
    assert doctor.as_text([fine, slow]) == ("ok    Python  3.11.7\nwarn  Disk    1 GiB free\n      Free some space.")
    assert doctor.as_text([]) == ""


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_a_fault_without_a_fix_is_a_mistake(status):
    with pytest.raises(AssertionError):
        Check(name="x", status=status, found="y")
