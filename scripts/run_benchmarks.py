"""The benchmarks of the README: `telecine bench` on the demo model and on a medium one. `make bench` runs this.

    python scripts/run_benchmarks.py [--out benchmarks] [--threads N] [--only demo|medium|growth]...

Models and bundles are made under `bundles/` where they are missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from demo_model.settings import CHECKPOINT

from telecine.atomic import atomic_folder

ROOT = Path(__file__).parents[1]
TELECINE = str(Path(sys.executable).with_name("telecine"))
BUNDLES = ROOT / "bundles"
DEMO_SIZE = ["--width", "96", "--height", "96", "--num-frames", "17", "--num-inference-steps", "25"]
MEDIUM_SIZE = ["--width", "512", "--height", "512", "--num-frames", "25", "--num-inference-steps", "4"]
SIDE_BY_SIDE = ["--compile", "--roofline", "--fresh", "3"]
# Which model, and what to measure of it.
BENCHMARKS = {
    "demo": ("demo", [*DEMO_SIZE, *SIDE_BY_SIDE, "--repeats", "9", "--installed", "--host"]),
    "medium": ("medium", [*MEDIUM_SIZE, *SIDE_BY_SIDE, "--repeats", "5"]),
    "growth": ("long", [*DEMO_SIZE, "--repeats", "1", "--sweep", "16384"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the README's benchmarks.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    parser.add_argument("--threads", type=int, help="Of one operator; default: the cores that there are.")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    threads = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    for name in arguments.only or BENCHMARKS:
        model, options = BENCHMARKS[name]
        source = checkpoint(model)
        files = ["-o", str(arguments.out / f"{name}.json")]
        if "--sweep" in options:
            files += ["--plot", str(arguments.out / f"{name}.svg")]
        run([TELECINE, "bench", str(bundle(model, source)), "--against", str(source), *options, *threads, *files])


def checkpoint(model: str) -> Path:
    """Where a model's weights are; all but the demo model's are made."""
    if model == "demo":
        return CHECKPOINT
    made = BUNDLES / f"{model}-source"
    if model == "long" and not made.exists():
        lengthen(made)
    elif not (made / "model_index.json").exists():  # the last file of a checkpoint
        run([sys.executable, str(ROOT / "scripts" / "make_medium_checkpoint.py"), str(made)])
    return made


def lengthen(made: Path) -> None:
    """The demo model with a schedule for any length: its own shifts by the tokens, and overflows above 4,096."""
    with atomic_folder(made, overwrite=False) as folder:
        shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True)
        path = folder / "scheduler" / "scheduler_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"use_dynamic_shifting": False, "shift_terminal": None}), encoding="utf-8")


def bundle(model: str, source: Path) -> Path:
    exported = BUNDLES / model
    if not exported.exists():
        run([TELECINE, "export", str(source), str(exported)])
    return exported


def run(command: list[str]) -> None:
    """Run in the terminal; exit with its exit code where it fails."""
    print("---", " ".join(command), file=sys.stderr, flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    main()
