"""The wheel, and environments that have it and nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

import telecine

ROOT = Path(__file__).parents[2]
# One small request, as options of the command line and as parameters of `generate`.
REQUEST = {
    "prompt": "a red ball rolls to the left",
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 3,
    "seed": 0,
}
# Nothing of the session that tests leads into the environment that is tested.
LEADS_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TELECINE_TEST_CACHE")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used from a folder outside the checkout."""

    folder: Path
    cwd: Path

    def run(self, program: str, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "bin" / program, *map(str, args)],
            cwd=self.cwd,
            env={name: value for name, value in os.environ.items() if name not in LEADS_OUT},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def python(self, code: str) -> str:
        """What the code prints."""
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def generate(self, bundle: Path) -> np.ndarray:
        """REQUEST through the command line: the frames of its PNG sequence, uint8 (F, H, W, 3)."""
        options = [item for name, value in REQUEST.items() for item in (f"--{name.replace('_', '-')}", value)]
        done = self.run("telecine", "generate", bundle, *options, "-o", "frames/%05d.png")
        assert done.returncode == 0, done.stderr
        return np.stack([_read_png(path) for path in sorted((self.cwd / "frames").glob("*.png"))])


def _read_png(path: Path) -> np.ndarray:
    with av.open(str(path)) as image:
        return next(image.decode(video=0)).to_ndarray(format="rgb24")


def pip(*args: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, args)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def make_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """`make_environment(python, constraints=FILE)`: `telecine[onnxruntime,video]` from the wheel, without pip."""

    def make(python: str | Path, *, constraints: Path | None = None) -> Environment:
        place = tmp_path_factory.mktemp("environment")
        environment = Environment(folder=place / "env", cwd=place / "elsewhere")
        environment.cwd.mkdir()
        subprocess.run([python, "-m", "venv", "--without-pip", environment.folder], check=True)
        limits = ["--constraint", constraints] if constraints and constraints.exists() else []
        interpreter = environment.folder / "bin" / "python"
        pip("--python", interpreter, "install", *limits, f"telecine[onnxruntime,video] @ {wheel.as_uri()}")
        return environment

    return make


@pytest.fixture(scope="session")
def frames_here(tiny_bundle: Path) -> np.ndarray:
    """REQUEST in this process, from the checkout: uint8 (F, H, W, 3)."""
    with telecine.load(tiny_bundle) as pipe:
        return pipe.generate(**REQUEST, output_type="uint8").frames[0]
