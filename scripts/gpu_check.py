"""Check every GPU path of this machine against the CPU, and measure each next to diffusers.

    python scripts/gpu_check.py [--model demo|real-size]... [--only TEXT]... [--rounds N] [--work DIR] [--out FILE]

For the demo model and for the 2B one at its real size, with random weights made on the spot: bundles at fp32, fp16,
bf16 and fp8; engines of TensorRT and TensorRT for RTX; frames of each path next to ONNX Runtime's CPU provider at
fp32; and a table of a denoising step, of the loop next to its network's calls back to back, of decoding, start-up and
memory, beside diffusers in eager mode and through torch.compile. It runs with what the machine has and says what it
skipped. Every job has a process and a time limit of its own. FILE, JSON, is written after each; exit code 1 where
something failed, or no GPU path was checked. A run over everything takes hours and 120 GB of disk, `--model demo` some
minutes; what is exported and built stays in DIR for the next run. It needs a GPU and what shall be checked on it:

    pip install -e ".[export,video,tensorrt]" tensorrt-rtx      # torch with CUDA; leave out what there is no use for
    pip uninstall -y onnxruntime; pip install "onnxruntime-gpu[cuda,cudnn]" cuda-bindings
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_checks.facts import look
from gpu_checks.jobs import Outcome
from gpu_checks.plan import MODELS, Asked, plan, select
from gpu_checks.report import as_json, as_text, checked, line
from gpu_checks.runner import run_jobs

from telecine.atomic import atomic_file, check_writable

ROOT = Path(__file__).parents[1]


def main() -> None:
    arguments = parse_arguments()
    if arguments.task:
        answer(arguments)
        return
    check_writable(arguments.out)
    asked = Asked(
        models=arguments.model or MODELS,
        rounds=arguments.rounds,
        repeats=arguments.repeats,
        steps=arguments.steps,
        work=arguments.work.absolute(),
    )
    facts = look()
    jobs = select(plan(asked, facts.capability), arguments.only)
    if arguments.list:
        for job in jobs:
            print(f"{job.kind:8}{job.name}")
        return
    settings = {"models": asked.models, "rounds": asked.rounds, "repeats": asked.repeats, "steps": asked.steps}

    def told(outcomes: Sequence[Outcome]) -> None:
        print(line(outcomes[-1]), file=sys.stderr, flush=True)
        with atomic_file(arguments.out) as partial:
            partial.write_text(json.dumps(as_json(facts, outcomes, settings), indent=1) + "\n", encoding="utf-8")

    outcomes = run_jobs(jobs, facts, asked.work, told=told)
    print(as_text(facts, outcomes))
    sys.exit(0 if checked(outcomes) else 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure every GPU path of this machine.")
    parser.add_argument("--model", action="append", choices=MODELS, help="Default: both.")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="Jobs with this in their names, and what they need."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Of the speed table; 0 leaves it out.")
    parser.add_argument("--repeats", type=int, default=2, help="Generations of a round that count.")
    parser.add_argument("--steps", type=int, default=8, help="Denoising steps of a generation, 2 or more.")
    parser.add_argument("--work", type=Path, default=ROOT / "bundles" / "gpu-check", help="Bundles, engines and logs.")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--list", action="store_true", help="Print the jobs, and run none.")
    for name in ("--task", "--arguments", "--answer"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def answer(arguments: argparse.Namespace) -> None:
    """One task, in this process, which is its own."""
    from gpu_checks.tasks import TASKS

    # Nothing is asked of the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    told = TASKS[arguments.task](**json.loads(arguments.arguments))
    content = {"status": told.status, "detail": told.detail, "figures": dict(told.figures)}
    with atomic_file(arguments.answer) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
