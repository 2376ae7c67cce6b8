"""A queue in front of a pipeline: worker threads with a clone each, jobs that can be cancelled and have a time limit.

python runtime/examples/queue_service.py bundles/demo out --workers 2 --time-limit 60 < prompts.txt

makes out/0.mp4, out/1.mp4, ... of a prompt a line.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import telecine


class Job:
    """A request on its way. `future.result()` is a `telecine.Result`, or raises what went wrong."""

    future: Future[telecine.Result]

    def __init__(self, time_limit: float | None) -> None:
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop it before it begins, or after the step that is running: `future` has a `telecine.Cancelled` then."""
        self._cancelled.set()

    def goes_on(self) -> bool:
        return not self._cancelled.is_set() and (self._deadline is None or time.monotonic() < self._deadline)

    def on_step(self, step: int, steps: int, sigma: float, latents: Any) -> bool | None:
        """The callback of its run, where False means to stop."""
        return None if self.goes_on() else False


class VideoService:
    """`workers` requests at a time on clones of a pipeline, which share its weights; `waiting` more may wait."""

    def __init__(self, pipe: telecine.Pipeline, *, workers: int = 1, waiting: int = 16) -> None:
        self._free: queue.SimpleQueue[telecine.Pipeline] = queue.SimpleQueue()
        self._clones = [pipe.clone() for _ in range(workers)]
        for clone in self._clones:
            self._free.put(clone)
        self._places = threading.BoundedSemaphore(workers + waiting)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="video")

    def submit(self, *, time_limit: float | None = None, **request: Any) -> Job:
        """A job for the parameters of `generate`; `time_limit` is in seconds from now, waiting included.

        Raises:
            queue.Full: so many wait already that the caller had better try again later.
            RuntimeError: the service is closed.
        """
        if not self._places.acquire(blocking=False):
            raise queue.Full
        job = Job(time_limit)
        try:
            job.future = self._threads.submit(self._run, job, request)
        except RuntimeError:
            self._places.release()
            raise
        job.future.add_done_callback(lambda _: self._places.release())
        return job

    def _run(self, job: Job, request: dict[str, Any]) -> telecine.Result:
        if not job.goes_on():
            raise telecine.Cancelled(
                "the job was cancelled, or its time was up, before it began", expected="a run", fix="Submit it again."
            )
        clone = self._free.get_nowait()  # there are as many as threads
        try:
            return clone.generate(**request, callback=job.on_step)
        finally:
            self._free.put(clone)

    def close(self) -> None:
        """Finish what was submitted, then free the clones."""
        self._threads.shutdown()
        for clone in self._clones:
            clone.close()

    def __enter__(self) -> VideoService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def save(job: Job, path: Path) -> bool:
    """Whether there is a video of the job."""
    try:
        print(*job.future.result().save(path))
    except telecine.TelecineError as error:  # the others go on
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--time-limit", type=float)
    for name in ("width", "height", "num-frames", "num-inference-steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--preset")
    asked = vars(parser.parse_args())
    bundle, out, workers, time_limit = (asked.pop(name) for name in ("bundle", "out", "workers", "time_limit"))
    prompts = [line.strip() for line in sys.stdin if line.strip()]
    with telecine.load(bundle) as pipe, VideoService(pipe, workers=workers, waiting=len(prompts)) as service:
        jobs = [service.submit(time_limit=time_limit, prompt=prompt, seed=0, **asked) for prompt in prompts]
        out.mkdir(parents=True, exist_ok=True)
        saved = [save(job, out / f"{number}.mp4") for number, job in enumerate(jobs)]
    return 0 if all(saved) else 1


if __name__ == "__main__":
    sys.exit(main())
