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
from contextlib import AbstractContextManager, contextmanager, suppress
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
        self._rate = Fraction(float(frame_rate)).limit_denominator(1001)
        self._quality = self._format.quality if quality is None else quality
        self._encoder: _Encoder | None = None
        self._context = self._encoding()
        _check_encoder(self._format)

    def __enter__(self) -> VideoWriter:
        self._encoder = self._context.__enter__()
        return self

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 (F, H, W, 3) frames; F may be any number.

        Raises:
            RequestError: another dtype or shape, a full disk, or a call outside the `with` block.
            BackendError: the encoder failed.
        """
        if self._encoder is None:
            raise RequestError(
                "write() was called outside of the writer's `with` block",
                expected="an open writer",
                fix="Use `with VideoWriter(...) as writer:`.",
            )
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self._size, 3):
            raise _wrong_frames(frames, f"uint8 (F, {self._size[0]}, {self._size[1]}, 3)")
        with _explaining(self.path):
            for frame in frames:
                self._encoder.encode(frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._encoder = None
        return self._context.__exit__(kind, error, traceback)

    @contextmanager
    def _encoding(self) -> Iterator[_Encoder]:
        images = self._format.codec == "png"
        target = atomic_folder(self.path.parent, overwrite=False) if images else atomic_file(self.path)
        with target as temporary:
            if images:
                temporary /= self.path.name
            with _explaining(self.path):
                encoder = _Encoder(self._format, temporary, self._rate, self._size, self._quality)
            try:
                yield encoder
                if not encoder.num_frames:
                    raise RequestError(
                        f"no frame was written to {self.path}", expected="one at least", fix="Write frames."
                    )
                with _explaining(self.path):
                    encoder.finish()
            except BaseException:
                encoder.abandon()
                raise


class _Encoder:
    """Frames through a filter graph and an encoder into a container, or into PNG files of their own."""

    def __init__(self, spec: _Format, path: Path, rate: Fraction, size: tuple[int, int], quality: int | None) -> None:
        av = _require_av()
        self.num_frames = 0
        self._format, self._path, self._rate = spec, path, rate
        self._num_packets = 0
        self._clock = _GIF_CLOCK if spec.codec == "gif" else 1 / rate
        # Rows and columns that the format's grid lacks.
        self._padding = [(0, -side % spec.multiple) for side in size]
        height, width = (side + extra for side, (_, extra) in zip(size, self._padding, strict=True))
        self._container: Any = None
        if spec.codec == "png":  # no container: FFmpeg's would take any % in the folder's name for a pattern
            self._coder = av.CodecContext.create(spec.codec, "w")
            context = self._coder
        else:
            options = dict(spec.container_options)
            if spec.codec == "gif":
                options["final_delay"] = str(round(1 / rate / _GIF_CLOCK))
            self._container = av.open(str(path), "w", options=options)
            self._coder = self._container.add_stream(spec.codec, rate=1 / self._clock)
            context = self._coder.codec_context
            context.bit_rate = 0
        context.options = {**dict(spec.codec_options), **({} if quality is None else {"crf": str(quality)})}
        context.height, context.width, context.pix_fmt = height, width, spec.pixels
        context.time_base = self._clock
        if spec.pixels == "yuv420p":
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        self._graph = _open_graph(spec.codec, spec.pixels, height, width, self._clock)

    def encode(self, pixels: np.ndarray) -> None:
        """Take one uint8 (H, W, 3) frame."""
        av = _require_av()
        if any(extra for _, extra in self._padding):
            pixels = np.pad(pixels, [*self._padding, (0, 0)], mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = round(self.num_frames / self._rate / self._clock), self._clock
        self.num_frames += 1
        self._graph.push(frame)
        self._drain()

    def finish(self) -> None:
        """Encode what the graph and the encoder still hold, and close the file."""
        self._graph.push(None)
        self._drain()
        self._mux(self._coder.encode(None))
        if self._container is not None:
            self._container.close()

    def abandon(self) -> None:
        """Close the file, whatever state it is in."""
        av = _require_av()
        if self._container is not None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()

    def _drain(self) -> None:
        av = _require_av()
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):  # it wants more frames; it has ended
                return
            self._mux(self._coder.encode(frame))

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            if self._container is None:
                file = self._path.with_name(self._path.name % self._num_packets)
                file.write_bytes(bytes(packet))
            else:
                if self._format.codec != "gif":
                    packet.duration = 1  # without it the last frame, or a single one, has none
                self._container.mux(packet)
            self._num_packets += 1


def read_video(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """The frames, uint8 (F, H, W, 3), and the frame rate in frames a second.

    Frames are turned upright as the file says. Untagged colours are BT.709 from 720 rows up, else BT.601.

    Raises:
        RequestError: no such file, or one that FFmpeg finds no video in.
        BackendError: PyAV is missing.
    """
    av = _require_av()
    file = Path(os.path.abspath(Path(path).expanduser()))  # absolute: no name can be taken for a protocol
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
    scale = ("scale", f"in_color_matrix={matrix}:in_range={levels}:{_SCALE_FLAGS}")
    return _chain(
        (frame.height, frame.width, frame.format.name, frame.time_base or Fraction(1)),
        scale,
        ("format", "pix_fmts=rgb24"),
    )


def _open_graph(codec: str, pixels: str, height: int, width: int, clock: Fraction) -> Any:
    """The graph from rgb24 to what the encoder takes."""
    source = (height, width, "rgb24", clock)
    if codec == "png":
        return _chain(source)
    if codec != "gif":
        return _chain(source, ("scale", _TO_BT709), ("format", f"pix_fmts={pixels}"))
    graph = _require_av().filter.Graph()
    buffer = graph.add_buffer(height=height, width=width, format="rgb24", time_base=clock)
    # On all pixels palettegen takes 0.6 s a frame of 768x512; those of a grid choose colours as good.
    thin = graph.add("scale", "w='min(192,iw)':h='min(192,ih)':flags=neighbor")
    split, palette = graph.add("split"), graph.add("palettegen")
    # An ordered pattern: error diffusion boils from frame to frame, which also costs a third more bytes.
    use = graph.add("paletteuse", "dither=bayer:bayer_scale=3:diff_mode=rectangle")
    buffer.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(thin, 1, 0)
    thin.link_to(palette)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _chain(source: tuple[int, int, str, Fraction], *filters: tuple[str, str]) -> Any:
    """A graph of one filter after the other, from frames of (height, width, pixel format, clock)."""
    graph = _require_av().filter.Graph()
    height, width, pixels, clock = source
    last = graph.add_buffer(height=height, width=width, format=pixels, time_base=clock)
    for name, options in filters:
        node = graph.add(name, options)
        last.link_to(node)
        last = node
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _format_of(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise RequestError(
            f"{path} ends in {suffix!r}" if suffix else f"{path} has no suffix",
            expected=f"one of {', '.join(_FORMATS)}",
            fix="Name the file out.mp4, or frames/%05d.png for a folder of PNG images.",
        )
    return _FORMATS[suffix]


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


def _check_frame_rate(frame_rate: float, spec: _Format) -> None:
    highest = MAX_GIF_FRAME_RATE if spec.codec == "gif" else MAX_FRAME_RATE
    if not (math.isfinite(frame_rate) and MIN_FRAME_RATE <= frame_rate <= highest):
        raise RequestError(
            f"the frame rate is {frame_rate}",
            expected=f"{MIN_FRAME_RATE:g} to {highest:g} frames a second for this format",
            fix="Pass another frame rate." if spec.codec != "gif" else "Pass another frame rate, or use mp4.",
        )


def _check_quality(quality: int, spec: _Format) -> None:
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


def _wrong_frames(frames: np.ndarray, expected: str) -> RequestError:
    return RequestError(
        f"the frames are {frames.dtype} {frames.shape}",
        expected=expected,
        fix='generate(output_type="uint8") gives such frames, with a batch axis in front: save frames[0].',
    )


def _undecodable(path: str | os.PathLike[str], reason: str) -> RequestError:
    return RequestError(
        f"{path} cannot be read as a video ({reason})",
        expected="a file that FFmpeg decodes",
        fix="Check that it plays, or convert it to mp4.",
    )


def _require_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise BackendError(
            f"PyAV cannot be imported ({error})",
            expected="PyAV, which reads and writes video files",
            fix='Run: pip install "telecine[video]"',
        ) from error
    return av


def _check_encoder(spec: _Format) -> None:
    av = _require_av()
    try:
        av.Codec(spec.codec, "w")
    except ValueError as error:  # UnknownCodecError, whose module moved between versions
        raise BackendError(
            f"the FFmpeg of PyAV {av.__version__} lacks the encoder {spec.codec}",
            expected="a build with it, such as PyAV's own wheels",
            fix='Run: pip install --force-reinstall --only-binary av "telecine[video]", or write another format.',
        ) from error


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn a failure to write into a RequestError, and one of the encoder into a BackendError."""
    av = _require_av()
    try:
        yield
    except OSError as error:  # FFmpeg's own errors of this kind are OSErrors too
        raise RequestError(
            f"{path} could not be written ({error.strerror or error})",
            expected="a disk with room",
            fix="Free space, or choose another path.",
        ) from error
    except av.FFmpegError as error:
        raise BackendError(
            f"FFmpeg failed to encode {path} ({error})",
            expected="frames that its encoder takes",
            fix="Write another format, or frames/%05d.png.",
        ) from error
