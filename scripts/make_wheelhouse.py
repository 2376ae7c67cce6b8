"""Every wheel that a box needs to run engines, in one folder, and the command that installs them with no network.

    python scripts/make_wheelhouse.py [--extra tensorrt-rtx] [--out dist/wheelhouse]

The wheels are for the Python, the platform and the packages' index of this machine: make it on one like the box.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from telecine.atomic import atomic_folder

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect the wheels of telecine and an extra of it for a box.")
    parser.add_argument("--extra", default="tensorrt-rtx", help="one, or several with commas: tensorrt-rtx,video")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "wheelhouse")
    arguments = parser.parse_args()
    with atomic_folder(arguments.out, overwrite=True, is_ours=is_wheelhouse) as folder:
        collect(arguments.extra, folder)
    print(f'pip install --no-index --find-links {arguments.out} "telecine[{arguments.extra}]"')


def collect(extra: str, folder: Path) -> None:
    """Wheels of telecine itself and of all that it needs with an extra; what is published as source is built here."""
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    what = f"{ROOT}[{extra}]"
    command = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(folder), *constraints, what]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def is_wheelhouse(folder: Path) -> bool:
    """Whether a folder holds wheels and nothing else: it may be replaced."""
    return all(path.suffix == ".whl" for path in folder.iterdir())


if __name__ == "__main__":
    main()
