"""What make promises: a recipe for each target."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "lint", "build-engines", "wheelhouse", "bench"])
def test_every_target_has_a_recipe(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/" in done.stdout


def test_triton_has_an_environment_of_its_own() -> None:
    command = ["make", "--dry-run", "--always-make", "triton-env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".triton-env/bin/python -m pip install" in done.stdout
    assert "--constraint constraints-triton.txt" in done.stdout
    assert ".venv" not in done.stdout
