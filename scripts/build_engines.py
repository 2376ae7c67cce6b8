"""checkpoint → bundle → verified → TensorRT engines: `make build-engines`. Run again, it goes on where it was stopped.

Without a model it takes the demo model of this repository. Without a target it builds for this machine's GPU; where
there is none, for the GeForce RTX 40 and 50 by TensorRT for RTX, which needs none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from demo_model.settings import CHECKPOINT, SETTINGS

from telecine.atomic import atomic_file
from telecine.bundle import is_bundle
from telecine_engines.gpu import has_gpu

ROOT = Path(__file__).parents[1]
TELECINE = [sys.executable, "-c", "from telecine.cli import main; main()"]
DONE = "build-engines.json"  # in the bundle: what was exported, and that it was verified
WITHOUT_GPU = ("rtx-sm89", "rtx-sm120")
DEMO_WORKLOADS = ("{width}x{height}x{num_frames}".format(**SETTINGS),)


def main() -> None:
    arguments = parse_arguments()
    source = arguments.model or str(CHECKPOINT)
    export = ["export", source, "--precision", arguments.precision, *arguments.export]
    bundle = bundle_folder(arguments.model, arguments.precision)
    targets = arguments.target or (["local"] if has_gpu() else list(WITHOUT_GPU))
    workloads = arguments.workloads.split() or ([] if arguments.model else list(DEMO_WORKLOADS))

    state = read_state(bundle, export)
    if not state["exported"]:
        run("export", [*export[:2], str(bundle), *export[2:], "--overwrite"])
        write_state(bundle, export, verified=False)
    if not state["verified"]:
        run("verify", ["verify", str(bundle), source])
        write_state(bundle, export, verified=True)
    options = [word for target in targets for word in ("--target", target)]
    options += [word for workload in workloads for word in ("--workload", workload)]
    run("build", ["build", str(bundle), *options, *arguments.build])
    if not arguments.target and targets != ["local"]:
        print("This machine has no GPU: nothing of this was run. Copy the bundle to one that has.", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export, verify and build TensorRT engines; what is done stays.")
    parser.add_argument("--model", default="", help="diffusers folder or hub id; none takes the demo model")
    parser.add_argument("--precision", default="fp32", help="of telecine export")
    parser.add_argument("--target", action="append", default=[], help="of telecine build; repeat for several")
    parser.add_argument("--workloads", default="", help="sizes of telecine build, separated by spaces")
    parser.add_argument("--export", nargs="*", default=[], metavar="OPTION", help="more options of telecine export")
    parser.add_argument("build", nargs="*", help="more options of telecine build, after --")
    arguments = parser.parse_args()
    arguments.target = [target for each in arguments.target for target in each.split()]
    return arguments


def bundle_folder(model: str, precision: str) -> Path:
    """`bundles/NAME-PRECISION`."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-") or "demo"
    return ROOT / "bundles" / f"{name}-{precision}"


def read_state(bundle: Path, export: list[str]) -> dict[str, bool]:
    """What of the export is there already: a bundle that these very words made, and whether it was verified."""
    nothing = {"exported": False, "verified": False}
    if not is_bundle(bundle):
        return nothing
    try:
        done = json.loads((bundle / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return nothing
    return {"exported": True, "verified": done["verified"]} if done["export"] == fingerprint(export) else nothing


def write_state(bundle: Path, export: list[str], *, verified: bool) -> None:
    with atomic_file(bundle / DONE) as partial:
        partial.write_text(json.dumps({"export": fingerprint(export), "verified": verified}), encoding="utf-8")


def fingerprint(export: list[str]) -> str:
    """Of an export's words and, for a folder, of its files' sizes and times: weights are not hashed for this."""
    source = Path(export[1])
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else []
    stats = [(str(path.relative_to(source)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([export, stats]).encode()).hexdigest()


def run(stage: str, words: list[str]) -> None:
    """Run one command of telecine in the terminal, or exit with its exit code."""
    print(f"--- {stage}", file=sys.stderr, flush=True)
    start = time.monotonic()
    code = subprocess.run([*TELECINE, *words], cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(code)
    print(f"{stage} took {time.monotonic() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
