"""The formats that a path's suffix names, and what each can hold: no PyAV needed."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from telecine.atomic import check_folder_writable, check_writable
from telecine.errors import RequestError

# What the containers and players agree on: the millisecond clock of WebM, and a slide show.
MIN_FRAME_RATE, MAX_FRAME_RATE = 0.01, 1000.0
MAX_GIF_FRAME_RATE = 50.0  # players slow a delay below 2/100 s down to 10/100 s
_PATTERN = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one suffix is encoded."""

    codec: str
    pixels: str  # FFmpeg's pixel format
    multiple: int = 1  # of height and width
    qualities: range | None = None  # CRF: lower is better
    quality: int | None = None
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()
    sound: str | None = None  # FFmpeg's audio codec; None where there is no place for sound
    sound_rates: tuple[int, ...] = ()  # samples a second that it takes


FORMATS = {
    # CRF 0 is lossless H.264, in a profile that browsers and phones do not play.
    ".mp4": Format(
        codec="libx264",
        pixels="yuv420p",
        multiple=2,
        qualities=range(1, 52),
        quality=18,
        container_options=(("movflags", "+faststart"),),
        sound="aac",
        sound_rates=(8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    ),
    # b=0: constant quality, with no bit rate as a ceiling.
    ".webm": Format(
        codec="libvpx-vp9",
        pixels="yuv420p",
        qualities=range(64),
        quality=24,
        codec_options=(("b", "0"), ("row-mt", "1"), ("cpu-used", "2")),
        sound="libopus",
        sound_rates=(8000, 12000, 16000, 24000, 48000),
    ),
    ".gif": Format(codec="gif", pixels="pal8", container_options=(("loop", "0"),)),
    ".png": Format(codec="png", pixels="rgb24"),
}


def check_output_path(
    path: str | os.PathLike[str], *, frame_rate: float | None = None, quality: int | None = None
) -> Path:
    """The path as a Path, if a video can be written there; touches nothing, needs no PyAV.

    Call it before the work whose result goes there; with frame_rate (frames a second) and quality (CRF) it
    checks that the format takes them.

    Raises:
        RequestError: an unknown suffix, a PNG path without a pattern, a place that cannot be written, or a
            frame rate or quality that the format lacks.
    """
    output = Path(os.path.expanduser(path))
    spec = format_of(output)
    if frame_rate is not None:
        check_frame_rate(frame_rate, spec)
    if quality is not None:
        check_quality(quality, spec)
    if spec.codec == "png":
        _check_png_pattern(output)
        check_folder_writable(output.parent, overwrite=False)
    else:
        check_writable(output)
    return output


def format_of(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise RequestError(
            f"{path} ends in {suffix!r}" if suffix else f"{path} has no suffix",
            expected=f"one of {', '.join(FORMATS)}",
            fix="Name the file out.mp4, or frames/%05d.png for a folder of PNG images.",
        )
    return FORMATS[suffix]


def _check_png_pattern(path: Path) -> None:
    if len(_PATTERN.findall(path.name)) != 1 or path.name.count("%") != 1:
        raise RequestError(
            f"{path} names one PNG image, and a video has many",
            expected="one %d or %05d in the file name, for the frame's number",
            fix=f"Use {path.parent / 'frames' / '%05d.png'}.",
        )
    if path.parent.resolve() == Path.cwd():
        raise RequestError(
            f"{path} would replace the current folder",
            expected="a folder of their own for the images",
            fix=f"Use frames/{path.name}.",
        )


def check_frame_rate(frame_rate: float, spec: Format) -> None:
    highest = MAX_GIF_FRAME_RATE if spec.codec == "gif" else MAX_FRAME_RATE
    if not (math.isfinite(frame_rate) and MIN_FRAME_RATE <= frame_rate <= highest):
        raise RequestError(
            f"the frame rate is {frame_rate}",
            expected=f"{MIN_FRAME_RATE:g} to {highest:g} frames a second for this format",
            fix="Pass another frame rate." if spec.codec != "gif" else "Pass another frame rate, or use mp4.",
        )


def check_quality(quality: int, spec: Format) -> None:
    if spec.qualities is None:
        raise RequestError(
            f"quality is {quality}, for {spec.codec}",
            expected="no quality: this format has none",
            fix="Leave it out, or write mp4 or webm.",
        )
    if isinstance(quality, bool) or quality not in spec.qualities:
        raise RequestError(
            f"quality is {quality}",
            expected=f"a whole number from {spec.qualities[0]} to {spec.qualities[-1]} (CRF, lower is better)",
            fix=f"The default is {spec.quality}.",
        )
