"""Jobs one after the other, each in a process of its own with a time limit: what one breaks is its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_checks.facts import Facts, free_disk
from gpu_checks.jobs import Job, Outcome

SCRIPT = Path(__file__).parents[1] / "gpu_check.py"
TOLD = 400  # characters of an error that are kept


def run_jobs(
    jobs: Iterable[Job],
    facts: Facts,
    work: Path,
    *,
    command: Sequence[str] = (sys.executable, str(SCRIPT)),
    told: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Outcomes of all jobs, in their order; `told` gets those so far after each."""
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        reason = job.lacks(facts, free_disk(work)) or _waits_for(job, outcomes)
        if reason is None:
            outcomes[job.name] = run_job(job, work, command)
        else:
            outcomes[job.name] = Outcome(job=job.name, kind=job.kind, status="SKIP", detail=reason)
        told(list(outcomes.values()))
    return list(outcomes.values())


def run_job(job: Job, work: Path, command: Sequence[str]) -> Outcome:
    """`COMMAND --task TASK --arguments JSON --answer FILE`, which writes what it told; its log lies beside."""
    folder = work / "jobs" / "".join(each if each.isalnum() else "-" for each in job.name)
    folder.mkdir(parents=True, exist_ok=True)
    answer, log = folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    arguments = json.dumps({**job.arguments, "started": time.monotonic()} if job.kind == "speed" else job.arguments)
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--task", job.task, "--arguments", arguments, "--answer", str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        problem = _wait(process, job.limit)
    seconds = time.monotonic() - start
    told = _read(answer)
    if problem is None and told is None:
        problem = "it ended without an answer"
    if problem is not None:
        detail = f"{problem}: {_last_line(log)} ({log})"
        return Outcome(job=job.name, kind=job.kind, status="FAIL", detail=detail, seconds=seconds)
    assert told is not None
    return Outcome(
        job=job.name, kind=job.kind, status=told["status"], detail=told["detail"], seconds=seconds,
        figures=told["figures"],
    )  # fmt: skip


def _waits_for(job: Job, outcomes: Mapping[str, Outcome]) -> str | None:
    """Why what it needs is not there."""
    for name in job.after:
        if name not in outcomes:
            return f"{name} was not asked for"
        if outcomes[name].status != "PASS":
            return f"{name}: {outcomes[name].status}"
    return None


def _wait(process: subprocess.Popen[bytes], limit: float) -> str | None:
    """What went wrong with a process, which is gone after, with all that it started."""
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"not done within {limit:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else None


def _read(answer: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(answer.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-TOLD:] if lines else "it said nothing"
