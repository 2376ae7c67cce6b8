"""One generation in a fresh process: seconds from its start to the first denoising step, and the memory it took.

    python -m telecine.bench.fresh BUNDLE SETTINGS

is the process; `measure_fresh` starts it, or diffusers' one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telecine.bench.competitor import Competitor
from telecine.bench.settings import Settings
from telecine.errors import BackendError
from telecine.peak_memory import highest_resident_bytes

if TYPE_CHECKING:
    from telecine.bench.device import DevicePeak

OURS = "telecine.bench.fresh"


def measure_fresh(module: str, path: str, settings: Settings) -> dict[str, float]:
    """Of `python -m MODULE PATH SETTINGS`: seconds from its start to the beginning of the first denoising step
    (`start_up`), to its end (`first_step`) and to that of the video (`total`), those of its quickest later step
    (`step`), and its peak resident bytes (`peak_memory`); on a GPU also what the device gave out
    (`peak_device_memory`).

    Raises:
        BackendError: the process failed, or was killed.
    """
    command = [sys.executable, "-m", module, path, json.dumps(dataclasses.asdict(settings))]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=settings.environment(), check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BackendError(
            f"{module} of {path} ended with {done.returncode}: {last}",
            expected="a generation",
            fix="Ask for a smaller size; a process that is killed ran out of memory.",
        )
    told = json.loads(done.stdout.splitlines()[-1])
    marks = told["marks"]
    return {
        "start_up": marks[-1] - told["denoise"] - start,
        "first_step": marks[0] - start,
        "step": min(after - before for before, after in itertools.pairwise(marks)),
        "total": told["end"] - start,
        **{name: told[name] for name in ("peak_memory", "peak_device_memory") if name in told},
    }


def tell(make: Callable[[Settings], Competitor], arguments: list[str]) -> None:
    """What the fresh process does: one generation, told as JSON. Times are of the clock that all processes share."""
    settings = Settings.parse(json.loads(arguments[0]))
    marks: list[float] = []
    with _watched(settings) as device:
        stages = make(settings).generate(settings, lambda: marks.append(time.monotonic()))
    told: dict[str, Any] = {
        "marks": marks,
        "denoise": stages["denoise"],  # it ends with the last step
        "end": time.monotonic(),
        "peak_memory": peak_memory(),
    }
    if device is not None:
        told["peak_device_memory"] = device.peak
    print(json.dumps(told))


def _watched(settings: Settings) -> AbstractContextManager[DevicePeak | None]:
    if not settings.on_gpu:
        return nullcontext()
    from telecine.bench.device import DevicePeak  # here: its import would count as start-up on a CPU

    return DevicePeak(settings.device)


def peak_memory() -> int:
    """Largest resident bytes of this process so far."""
    peak = highest_resident_bytes()
    if peak is None:
        raise BackendError("the system does not tell a process' peak", expected="Linux", fix="Measure on Linux.")
    return peak


if __name__ == "__main__":
    from telecine.bench.ours import Telecine

    def ours(settings: Settings) -> Competitor:
        return Telecine(Path(sys.argv[1]), threads=settings.threads, device=settings.device)

    tell(ours, sys.argv[2:])
