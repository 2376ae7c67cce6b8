"""The whole path, timed by stage: checkpoint → bundle → verified → `out/demo.mp4`. `make demo` runs this.

Without a model it takes the demo model of this repository, which knows coloured shapes that move.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from demo_model.settings import CHECKPOINT, FILE_FRAME_RATE, SETTINGS, UPSCALER, options

ROOT = Path(__file__).parents[1]
TELECINE = str(Path(sys.executable).with_name("telecine"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="diffusers folder or hub id; none takes the demo model")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("generate", nargs="*", help="more options of telecine generate")
    arguments = parser.parse_args()

    name = re.sub(r"[^\w.-]+", "-", arguments.model).strip("-") or "demo"
    bundle, clip = ROOT / "bundles" / name, ROOT / "out" / "demo.mp4"
    source = [arguments.model] if arguments.model else [str(CHECKPOINT), "--upscaler", str(UPSCALER)]
    recommended = ["--preset", "recommended"]
    shapes = ["--file-frame-rate", str(FILE_FRAME_RATE), *options(SETTINGS)]
    if "--seed" not in arguments.generate:  # a second one would be a second video's
        shapes += ["--seed", "0"]
    settings = recommended if arguments.model else shapes

    stages: dict[str, list[str]] = {}
    if bundle.exists():
        print(f"using {bundle.relative_to(ROOT)}; remove it to export again", file=sys.stderr)
    else:
        stages["export"] = [TELECINE, "export", source[0], str(bundle), *source[1:]]
    stages["verify"] = [TELECINE, "verify", str(bundle), *source]
    stages["generate"] = [
        TELECINE, "generate", str(bundle), "--prompt", arguments.prompt, "-o", str(clip),
        *settings, *arguments.generate,
    ]  # fmt: skip

    seconds = {stage: run(stage, command) for stage, command in stages.items()}
    print(f"\n{clip.relative_to(ROOT)}  ({', '.join(f'{stage} {took:.1f} s' for stage, took in seconds.items())})")


def run(stage: str, command: list[str]) -> float:
    """Run one stage in the terminal; returns its seconds, or exits with its exit code."""
    print(f"--- {stage}", file=sys.stderr, flush=True)
    start = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(code)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
