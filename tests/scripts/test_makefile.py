"""What make promises from the start: targets that are not built yet say so and fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["bench"])
def test_what_is_not_built_says_so_and_fails(target: str) -> None:
    done = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"make {target}: not built yet" in done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "lint", "build-engines", "wheelhouse"])
def test_the_other_targets_have_recipes(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/" in done.stdout


def test_triton_has_an_environment_of_its_own() -> None:
    command = ["make", "--dry-run", "--always-make", "triton-env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".triton-env/bin/python -m pip install" in done.stdout
    assert "--constraint constraints-triton.txt" in done.stdout
    assert ".venv" not in done.stdout
