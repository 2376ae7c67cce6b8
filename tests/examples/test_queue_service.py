"""The queue in front of a pipeline, and what it rests on: clones in threads, cancellation, time limits."""

from __future__ import annotations

import importlib.util
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import telecine

pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parents[2] / "runtime" / "examples" / "queue_service.py"
SMALL: dict[str, Any] = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2}
LONG = SMALL | {"num_inference_steps": 20_000}  # seconds


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("queue_service", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe(tiny_bundle: Path) -> Iterator[telecine.Pipeline]:
    with telecine.load(tiny_bundle, device="cpu", options=telecine.OnnxRuntimeOptions(threads=1)) as opened:
        yield opened


def test_every_request_gets_its_own_frames(example: ModuleType, pipe: telecine.Pipeline) -> None:
    with example.VideoService(pipe, workers=3) as service:
        jobs = [service.submit(**SMALL, seed=seed) for seed in range(9)]
        made = [job.future.result().frames for job in jobs]
    for seed, frames in enumerate(made):
        np.testing.assert_array_equal(frames, pipe.generate(**SMALL, seed=seed).frames)


def test_a_job_is_cancelled_within_a_step(
    example: ModuleType, pipe: telecine.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    third, cancelled, shown = threading.Event(), threading.Event(), []
    on_step = example.Job.on_step

    def watched(self: Any, step: int, *rest: Any) -> Any:
        shown.append(step)
        if step == 2:
            third.set()
            assert cancelled.wait(60)
        return on_step(self, step, *rest)

    monkeypatch.setattr(example.Job, "on_step", watched)
    with example.VideoService(pipe) as service:
        running, waiting = service.submit(**LONG), service.submit(**LONG)
        assert third.wait(60)
        waiting.cancel()
        running.cancel()
        cancelled.set()
        with pytest.raises(telecine.Cancelled, match="after step 3 of 20000"):
            running.future.result()
        with pytest.raises(telecine.Cancelled, match="before it began"):
            waiting.future.result()
        assert shown == [0, 1, 2]
        assert service.submit(**SMALL, seed=0).future.result().seeds == (0,)


def test_a_time_limit_counts_from_the_submission(example: ModuleType, pipe: telecine.Pipeline) -> None:
    with example.VideoService(pipe) as service:
        running = service.submit(**LONG, time_limit=0.3)
        waiting = service.submit(**SMALL, time_limit=1e-9)
        with pytest.raises(telecine.Cancelled, match=r"after step \d+ of 20000"):
            running.future.result()
        with pytest.raises(telecine.Cancelled, match="before it began"):
            waiting.future.result()


def test_bad_requests_and_full_queues_leave_it_running(example: ModuleType, pipe: telecine.Pipeline) -> None:
    with example.VideoService(pipe, waiting=1) as service:
        with pytest.raises(telecine.RequestError, match="width is 50"):
            service.submit(**SMALL | {"width": 50}).future.result()
        wait_for_places(service, 2)
        jobs = [service.submit(**LONG), service.submit(**LONG)]
        with pytest.raises(queue.Full):
            service.submit(**SMALL)
        for job in jobs:
            job.cancel()
        for job in jobs:
            assert isinstance(job.future.exception(), telecine.Cancelled)
        wait_for_places(service, 2)
        service.submit(**SMALL).future.result()
    with pytest.raises(RuntimeError, match="shutdown"):
        service.submit(**SMALL)


def wait_for_places(service: Any, count: int) -> None:
    """A job's place is free a moment after its result is there."""
    for _ in range(count):
        assert service._places.acquire(timeout=60)
    for _ in range(count):
        service._places.release()


def test_its_command(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    size = ["--width", "64", "--height", "32", "--num-frames", "9", "--num-inference-steps", "2"]
    command = [sys.executable, str(SCRIPT), str(tiny_bundle), str(tmp_path / "out"), "--workers", "2", *size]
    done = subprocess.run(command, input="a ball\n\na square\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = [str(tmp_path / "out" / name) for name in ("0.mp4", "1.mp4")]
    assert done.stdout.split() == written
    assert all(Path(path).stat().st_size for path in written)
    done = subprocess.run([*command, "--time-limit", "0"], input="a ball\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "0.mp4: the job was cancelled" in done.stderr
