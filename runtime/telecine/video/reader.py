"""A video file into uint8 frames."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from telecine.errors import RequestError
from telecine.video.ffmpeg import SCALE_FLAGS, chain, require_av


def read_video(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """The frames, uint8 (F, H, W, 3), and the frame rate in frames a second.

    Frames are turned upright as the file says. Untagged colours are BT.709 from 720 rows up, else BT.601.

    Raises:
        RequestError: no such file, or one that FFmpeg finds no video in.
        BackendError: PyAV is missing.
    """
    av = require_av()
    file = Path(os.path.abspath(Path(os.path.expanduser(path))))  # absolute: no name can be taken for a protocol
    if not file.is_file():
        raise RequestError(f"there is no file {path}", expected="a video file", fix="Check the path.")
    try:
        with av.open(str(file)) as container:
            frames, times = _decode(container)
            stream = container.streams.video[0] if frames else None
            rate = stream.average_rate or stream.guessed_rate if stream else None
            name = container.format.name
    except (av.FFmpegError, OSError) as error:
        raise _undecodable(path, str(error)) from error
    if not frames or not rate:
        raise _undecodable(path, "it holds no video frame")
    if name == "gif" and times[-1] > times[0]:
        # FFmpeg takes the commonest delay, in whole hundredths of a second.
        rate = (len(times) - 1) / (times[-1] - times[0])
    return np.stack(frames), float(rate)


def _decode(container: Any) -> tuple[list[np.ndarray], list[float]]:
    """Each frame of the first video stream, uint8 (H, W, 3), and its time in seconds."""
    frames: list[np.ndarray] = []
    times: list[float] = []
    graph: Any = None
    known = None
    # No context: a codec that FFmpeg does not know, on which PyAV 14.0 crashes.
    readable = container.streams.video and container.streams.video[0].codec_context is not None
    for frame in container.decode(video=0) if readable else ():
        layout = (frame.format.name, frame.height, frame.width, frame.colorspace, frame.color_range)
        if layout != known:
            graph, known = _open_rgb_graph(frame), layout
        quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # PyAV 14.0 has none
        times.append(frame.time or 0.0)
        graph.push(frame)
        frames.append(np.rot90(graph.pull().to_ndarray(), quarter_turns))
    return frames, times


def _open_rgb_graph(frame: Any) -> Any:
    """The graph that takes frames like this one to rgb24, by their own matrix on every version of PyAV."""
    matrix = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}.get(
        int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601"
    )
    levels = "full" if int(frame.color_range) == 2 else "auto"
    scale = ("scale", f"in_color_matrix={matrix}:in_range={levels}:{SCALE_FLAGS}")
    return chain(
        (frame.height, frame.width, frame.format.name, frame.time_base or Fraction(1)),
        scale,
        ("format", "pix_fmts=rgb24"),
    )


def _undecodable(path: str | os.PathLike[str], reason: str) -> RequestError:
    return RequestError(
        f"{path} cannot be read as a video ({reason})",
        expected="a file that FFmpeg decodes",
        fix="Check that it plays, or convert it to mp4.",
    )
