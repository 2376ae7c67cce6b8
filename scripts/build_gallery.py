"""Make the README's pictures: every clip of the gallery, by the commands that the README shows.

python scripts/build_gallery.py [NAME...]

Prints how close the clips come to the frames that they were given.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from demo_model.gallery import BUNDLE, DEMO, INPUTS, PICTURES, ROOT, Picture, given, path, psnr
from demo_model.settings import CHECKPOINT, FILE_FRAME_RATE, UPSCALER
from PIL import Image

from telecine.media import load_video
from telecine.video import save_video

BIN = Path(sys.executable).parent


def main() -> None:
    chosen = [picture for picture in PICTURES if picture.name in (sys.argv[1:] or [each.name for each in PICTURES])]
    (ROOT / path("")).mkdir(exist_ok=True)
    if not (ROOT / BUNDLE).exists():
        run(["telecine", "export", str(CHECKPOINT), BUNDLE, "--upscaler", str(UPSCALER)])
    for name in INPUTS:
        target = ROOT / path(name)
        if target.suffix == ".png":
            Image.fromarray(given(name)[0]).save(target)
        else:
            save_video(given(name), target, frame_rate=FILE_FRAME_RATE)
    for picture in chosen:
        run(picture.command(DEMO))
        for frame, name in picture.kept.items() if isinstance(picture, Picture) else ():
            expected = given(name)
            frames = load_video(ROOT / picture.file)[0][frame : frame + len(expected)]
            decibels = [psnr(made, drawn) for made, drawn in zip(frames, expected, strict=True)]
            print(f"{picture.name}: {name} at frame {frame}: {min(decibels):.1f} dB PSNR, of the clip's 256 colours")


def run(command: list[str]) -> None:
    """Run a command in the repository's root, where its paths begin."""
    print(shlex.join(command), file=sys.stderr)
    subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
