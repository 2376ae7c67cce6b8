"""uint8 frames into a video file that is whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from telecine.atomic import atomic_file, atomic_folder
from telecine.errors import RequestError
from telecine.video.ffmpeg import BT709, LIMITED_RANGE, TO_BT709, chain, check_encoder, explaining, require_av
from telecine.video.formats import Format, check_output_path, format_of
from telecine.video.sound import Sound, SoundEncoder, check_sound

_GIF_CLOCK = Fraction(1, 100)  # seconds


def save_video(
    frames: np.ndarray,
    path: str | os.PathLike[str],
    *,
    frame_rate: float,
    quality: int | None = None,
    sound: Sound | None = None,
) -> Path:
    """Write uint8 (F, H, W, 3) frames at frame_rate frames a second; `VideoWriter` has the rest.

    Raises:
        RequestError, BackendError: as `VideoWriter`.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or 0 in frames.shape:
        raise _wrong_frames(frames, "uint8 (F, H, W, 3) with at least one frame")
    _, height, width, _ = frames.shape
    with VideoWriter(path, frame_rate=frame_rate, height=height, width=width, quality=quality, sound=sound) as writer:
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
        sound: what is heard from the first frame on, for mp4 and webm; it may end before or after the last one.

    GIF holds all frames in memory until the end, because its palette is chosen from all of them.

    Raises:
        RequestError: a path, size, rate, quality or sound that cannot be written; frames of another shape or
            dtype; no frames at all; a full disk.
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
        sound: Sound | None = None,
    ) -> None:
        self.path = check_output_path(path, frame_rate=frame_rate, quality=quality)
        if min(height, width) < 1:
            raise RequestError(
                f"the frames are {height} high and {width} wide", expected="1 or more", fix="Pass other sizes."
            )
        self._format = format_of(self.path)
        self._size = (height, width)
        self._rate = Fraction(float(frame_rate)).limit_denominator(1001)
        self._quality = self._format.quality if quality is None else quality
        self._sound = sound
        if sound is not None:
            check_sound(sound, self.path)
        self._encoder: _Encoder | None = None
        self._context = self._encoding()
        check_encoder(self._format.codec)

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
        with explaining(self.path):
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
            with explaining(self.path):
                encoder = _Encoder(self._format, temporary, self._rate, self._size, self._quality, self._sound)
            try:
                yield encoder
                if not encoder.num_frames:
                    raise RequestError(
                        f"no frame was written to {self.path}", expected="one at least", fix="Write frames."
                    )
                with explaining(self.path):
                    encoder.finish()
            except BaseException:
                encoder.abandon()
                raise


class _Encoder:
    """Frames through a filter graph and an encoder into a container, or into PNG files of their own."""

    def __init__(
        self,
        spec: Format,
        path: Path,
        rate: Fraction,
        size: tuple[int, int],
        quality: int | None,
        sound: Sound | None,
    ) -> None:
        av = require_av()
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
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        self._graph = open_graph(spec.codec, spec.pixels, height, width, self._clock)
        self._sound = SoundEncoder(self._container, spec, sound) if sound is not None else None

    def encode(self, pixels: np.ndarray) -> None:
        """Take one uint8 (H, W, 3) frame."""
        av = require_av()
        if any(extra for _, extra in self._padding):
            pixels = np.pad(pixels, [*self._padding, (0, 0)], mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = round(self.num_frames / self._rate / self._clock), self._clock
        self.num_frames += 1
        self._graph.push(frame)
        self._drain()
        if self._sound is not None:  # beside its frame: players need not seek between the two
            self._sound.advance(self.num_frames / self._rate)

    def finish(self) -> None:
        """Encode what the graph and the encoder still hold, and close the file."""
        self._graph.push(None)
        self._drain()
        self._mux(self._coder.encode(None))
        if self._sound is not None:
            self._sound.finish()
        if self._container is not None:
            self._container.close()

    def abandon(self) -> None:
        """Close the file, whatever state it is in."""
        av = require_av()
        if self._container is not None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()

    def _drain(self) -> None:
        av = require_av()
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


def open_graph(codec: str, pixels: str, height: int, width: int, clock: Fraction) -> Any:
    """The graph from rgb24 to what the encoder takes."""
    source = (height, width, "rgb24", clock)
    if codec == "png":
        return chain(source)
    if codec != "gif":
        return chain(source, ("scale", TO_BT709), ("format", f"pix_fmts={pixels}"))
    graph = require_av().filter.Graph()
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


def _wrong_frames(frames: np.ndarray, expected: str) -> RequestError:
    return RequestError(
        f"the frames are {frames.dtype} {frames.shape}",
        expected=expected,
        fix='generate(output_type="uint8") gives such frames, with a batch axis in front: save frames[0].',
    )
