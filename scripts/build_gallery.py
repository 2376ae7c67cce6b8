"""Make the README's pictures: every clip of the gallery, by `telecine generate`, into scripts/gallery.

python scripts/build_gallery.py
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_model.settings import CHECKPOINT, FILE_FRAME_RATE, SETTINGS, options

ROOT = Path(__file__).parents[1]
GALLERY = Path(__file__).parent / "gallery"
TELECINE = str(Path(sys.executable).with_name("telecine"))


@dataclass(frozen=True, slots=True)
class Picture:
    """One clip: its file's name, its prompt, and what differs from the demo model's settings."""

    name: str
    prompt: str
    change: dict[str, Any] = field(default_factory=dict)


PICTURES = (
    Picture("ball-left", "a red ball rolls to the left over a dark green floor"),
    Picture("square-up", "a yellow square drifts upwards, against a dark blue wall", {"seed": 3}),
    Picture("triangle-right", "an orange triangle slides to the right over a gray background"),
    Picture("ball-grows", "a white circle gets bigger over a background that fades from brown to black", {"seed": 1}),
    Picture("without-negative", "a ball moves to the right over a black background", {"seed": 1}),
    Picture(
        "with-negative", "a ball moves to the right over a black background", {"seed": 1, "negative_prompt": "white"}
    ),
    Picture("wide", "an orange triangle moves to the right over a dark blue background", {"width": 128}),
    Picture("long", "a purple triangle moves slowly down over a light blue background", {"num_frames": 25}),
)


def main() -> None:
    bundle = ROOT / "bundles" / "demo"
    if not bundle.exists():
        subprocess.run([TELECINE, "export", str(CHECKPOINT), str(bundle)], check=True)
    GALLERY.mkdir(exist_ok=True)
    for picture in PICTURES:
        settings = SETTINGS | {"seed": 0} | picture.change
        output = GALLERY / f"{picture.name}.gif"
        command = [TELECINE, "generate", str(bundle), "--prompt", picture.prompt, "-o", str(output)]
        subprocess.run([*command, "--file-frame-rate", str(FILE_FRAME_RATE), *options(settings)], check=True)


if __name__ == "__main__":
    main()
