"""Video files to and from uint8 arrays (F, H, W, 3), through FFmpeg (PyAV, the extra `video`).

| path            | codec        | holds                                                                     |
|-----------------|--------------|---------------------------------------------------------------------------|
| out.mp4         | H.264        | 4:2:0, BT.709, plays everywhere; an odd size gains one row or column      |
| out.webm        | VP9          | 4:2:0, BT.709                                                             |
| out.gif         | GIF          | one palette of 255 colours for all frames; loops for ever; 50 fps at most |
| frames/%05d.png | PNG sequence | every bit; numbered from 0; the folder is written as a whole              |
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from telecine.atomic import atomic_file, atomic_folder, check_folder_writable, check_writable
from telecine.errors import BackendError, RequestError

# What the containers and players agree on: the millisecond clock of WebM, and a slide show.
MIN_FRAME_RATE, MAX_FRAME_RATE = 0.01, 1000.0
MAX_GIF_FRAME_RATE = 50.0  # players slow a delay below 2/100 s down to 10/100 s
_GIF_CLOCK = Fraction(1, 100)  # seconds
_PATTERN = re.compile(r"%(0\d+)?d")
# rgb to 4:2:0 with the matrix that the tags below name, without the rounding shortcuts of swscale's defaults.
_SCALE_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_TO_BT709 = f"out_color_matrix=bt709:out_range=tv:{_SCALE_FLAGS}"
_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """How one suffix is encoded."""

    codec: str
    pixels: str  # FFmpeg's pixel format
    multiple: int = 1  # of height and width
    qualities: range | None = None  # CRF: lower is better
    quality: int | None = None
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()


_FORMATS = {
    # CRF 0 is lossless H.264, in a profile that browsers and phones do not play.
    ".mp4": _Format(
        codec="libx264",
        pixels="yuv420p",
        multiple=2,
        qualities=range(1, 52),
        quality=18,
        container_options=(("movflags", "+faststart"),),
    ),
    # b=0: constant quality, with no bit rate as a ceiling.
    ".webm": _Format(
        codec="libvpx-vp9",
        pixels="yuv420p",
        qualities=range(64),
        quality=24,
        codec_options=(("b", "0"), ("row-mt", "1"), ("cpu-used", "2")),
    ),
    ".gif": _Format(codec="gif", pixels="pal8", container_options=(("loop", "0"),)),
    ".png": _Format(codec="png", pixels="rgb24"),
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
    output = Path(path).expanduser()
    spec = _format_of(output)
    if frame_rate is not None:
        _check_frame_rate(frame_rate, spec)
    if quality is not None:
        _check_quality(quality, spec)
    if spec.codec == "png":
        _check_png_pattern(output)
        check_folder_writable(output.parent, overwrite=False)
    else:
        check_writable(output)
    return output


def save_video(
    frames: np.ndarray, path: str | os.PathLike[str], *, frame_rate: float, quality: int | None = None
) -> Path:
    """Write uint8 (F, H, W, 3) frames at frame_rate frames a second; `VideoWriter` has the rest.

    Raises:
        RequestError, BackendError: as `VideoWriter`.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or 0 in frames.shape:
        raise _wrong_frames(frames, "uint8 (F, H, W, 3) with at least one frame")
    _, height, width, _ = frames.shape
    with VideoWriter(path, frame_rate=frame_rate, height=height, width=width, quality=quality) as writer:
        writer.write(frames)
    return writer.path


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Take uint8 (F, H, W, 3) frames in pieces; on leaving without error the video is whole, else absent.

    Args:
        path: its suffix chooses the format (the table above).
        frame_rate: frames a second; fractions such as 23.976 are kept to a denominator of 1001.
        height, width: of every frame, in pixels. MP4 needs even sizes (4:2:0 chroma): an odd one grows by one
            row or column that repeats the edge. The other formats keep it.
        quality: CRF, lower is better: 1 to 51 for mp4 (18), 0 to 63 for webm (24). GIF and PNG have none.

    GIF holds all frames in memory until the end, because its palette is chosen from all of them.

    Raises:
        RequestError: a path, size, rate or quality that cannot be written; frames of another shape or dtype;
            no frames at all; a full disk.
        BackendError: PyAV is missing, or its FFmpeg lacks the encoder or fails in it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frame_rate: float,
        height: int,
        width: int,
        quality: int | None = None,
    ) -> None:
        self.path = check_output_path(path, frame_rate=frame_rate, quality=quality)
        if min(height, width) < 1:
            raise RequestError(
                f"the frames are {height} high and {width} wide", expected="1 or more", fix="Pass other sizes."
            )
        self._format = _format_of(self.path)
        self._size = (height, width)
        self._rate = Fraction(frame_rate).limit_denominator(1001)
        self._quality = self._format.quality if quality is None else quality
        self._num_frames = 0
        self._encoder: _Encoder | None = None
        self._stack = ExitStack()
        _check_encoder(self._format)

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack, _explain(self.path):
            if self._format.codec == "png":
                temporary = stack.enter_context(atomic_folder(self.path.parent, overwrite=False))
                temporary /= self.path.name
            else:
                temporary = stack.enter_context(atomic_file(self.path))
            multiple = self._format.multiple
            height, width = (-(-side // multiple) * multiple for side in self._size)
            self._encoder = _open_encoder(
                self._format, temporary, rate=self._rate, height=height, width=width, quality=self._quality
            )
            self._stack = stack.pop_all()
        return self

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 (F, H, W, 3) frames; F may be any number.

        Raises:
            RequestError: another dtype or shape, a full disk, or a call outside the `with` block.
            BackendError: the encoder failed.
        """
        height, width = self._size
        if self._encoder is None:
            raise RequestError(
                "write() was called outside of the writer's `with` block",
                expected="an open writer",
                fix="Use `with VideoWriter(...) as writer:`.",
            )
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise _wrong_frames(frames, f"uint8 (F, {height}, {width}, 3)")
        with _explain(self.path):
            for frame in _pad_to_multiple(frames, self._format.multiple):
                self._encoder.encode(frame)
        self._num_frames += len(frames)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        encoder, self._encoder = self._encoder, None
        assert encoder is not None
        with self._stack as stack:
            stack.push(lambda *_: False)
            if error is not None:
                encoder.abandon()
