"""C++ hosts: the same frames as Python's, bit for bit, and C++ exceptions for everything that goes wrong."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_requests import REQUESTS
from numpy.typing import NDArray

import telecine

ROOT = Path(__file__).parents[2]
PROMPT = "a red ball rolls to the left over a dark green floor"
SIZE = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3}
ONE_THREAD = telecine.OnnxRuntimeOptions(threads=1)


def test_the_service_writes_pythons_frames(
    compiled: Path, run_alone: Callable[..., Any], demo_bundle: Path, tmp_path: Path
) -> None:
    options = ["--seed", "5", "--requests", "3", "--threads", "2"]
    done = serve(compiled, run_alone, demo_bundle, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert sorted(line.partition(":")[0] for line in done.stdout.splitlines()) == [f"request {i}" for i in range(3)]
    with telecine.load(demo_bundle, backend="onnxruntime", device="cpu", options=ONE_THREAD) as pipe:
        for i in range(3):
            frames = pipe.generate(PROMPT, **SIZE, seed=5 + i, output_type="uint8").frames
            assert frames is not None
            written = [read_ppm(tmp_path / "out" / str(i) / f"{k:05d}.ppm") for k in range(9)]
            np.testing.assert_array_equal(np.stack(written), frames[0])


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--width", "50"], 1, "request 0: width is 50; expected"),
        (["--time-limit", "0.001"], 1, "request 0: the time_limit of 0.001 s had passed after step 1 of"),
        (["--bundle", "/no/bundle"], 1, "telecine_service: /no/bundle does not exist; expected"),
        (["--environment", "/no/environment"], 1, "telecine_service: environment /no/environment is no folder"),
        (["--width", "wide"], 2, "--width needs a number, not wide"),
        (["--colour", "red"], 2, "unknown option --colour"),
    ],
)
def test_the_service_says_what_is_wrong(
    options: list[str],
    code: int,
    says: str,
    compiled: Path,
    run_alone: Callable[..., Any],
    demo_bundle: Path,
    tmp_path: Path,
) -> None:
    done = serve(compiled, run_alone, demo_bundle, tmp_path / "out", *options)
    assert done.returncode == code
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_parameter_makes_pythons_frames(
    check: Callable[..., str], demo_upscaler_bundle: Path, tmp_path: Path
) -> None:
    check("requests", demo_upscaler_bundle, tmp_path)
    with telecine.load(demo_upscaler_bundle, backend="onnxruntime", device="cpu", options=ONE_THREAD) as pipe:
        for name, request in REQUESTS.items():
            result = pipe.generate(**request)
            expected = result.latents if result.frames is None else result.frames
            assert expected is not None
            written = np.fromfile(tmp_path / name, expected.dtype)
            np.testing.assert_array_equal(written, expected.reshape(-1), err_msg=name)


def test_errors_are_exceptions_of_their_kind_and_leave_all_as_it_was(
    check: Callable[..., str], demo_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "telecine.json").write_text("{")
    check("errors", demo_bundle, tmp_path)


def test_a_bad_environment_is_refused(check: Callable[..., str], demo_bundle: Path, tmp_path: Path) -> None:
    old, bare = tmp_path / "old", tmp_path / "bare"
    for folder in ("bin", "lib/python2.7"):
        (old / folder).mkdir(parents=True)
    (old / "bin" / "python3").touch()
    venv.create(bare, with_pip=False)
    check("bad_environments", demo_bundle, old, bare, sysconfig.get_path("purelib"))


@pytest.mark.parametrize("name", ["cancelling", "restart", "shutdown", "streams"])
def test_runs_end_and_begin_again(name: str, check: Callable[..., str], demo_bundle: Path) -> None:
    check(name, demo_bundle)


def test_memory_does_not_grow(
    check: Callable[..., str], demo_bundle: Path, record_property: Callable[[str, object], None]
) -> None:
    first, last, _ = check("soak", demo_bundle, 200, 4).split()
    growth = int(last) / int(first) - 1
    record_property("measured", f"200 videos from 4 C++ threads: {growth:.2%} more resident memory after the first 20")
    assert growth <= 0.01


def serve(
    compiled: Path, run_alone: Callable[..., Any], bundle: Path, out: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run the example; of an option that is given twice the last one counts."""
    service = compiled / "embed" / "telecine_service"
    places = ["--environment", sys.prefix, "--python-path", ROOT / "runtime", "--bundle", bundle, "--out", out]
    size = ["--height", "64", "--width", "96", "--frames", "9", "--steps", "3", "--operator-threads", "1"]
    done: subprocess.CompletedProcess[str] = run_alone(service, *places, "--prompt", PROMPT, *size, *options)
    return done


def read_ppm(path: Path) -> NDArray[np.uint8]:
    kind, size, depth, pixels = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    assert (kind, depth) == (b"P6", b"255")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
