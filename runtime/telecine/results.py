"""What a run made, whole or in pieces, and how it becomes files."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import out_of_memory
from telecine.errors import RequestError
from telecine.families.base import Frames, Output, Stage
from telecine.peak_memory import MemoryUse
from telecine.pixels import to_uint8
from telecine.video import Sound, VideoWriter, check_output_path, holds_sound
from telecine.video.sound import check_sound, check_wav_path, save_wav

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a run made.

    `frames`: (B, num_frames, height, width, 3), float32 in [0, 1] or uint8. `latents`: as the same diffusers pipeline
    returns them. `timings`: seconds by stage; "network" is the transformer's part of "denoise". `seeds`: what to pass
    to get the same video again. `memory`: the peak that was predicted, and the one that was measured. Models that make
    sound give `audio`, (B, channels, samples) float32 in [-1, 1] at `sample_rate` samples a second, or `audio_latents`.
    """

    frames: Array | None
    latents: Array | None
    frame_rate: float
    seeds: tuple[int, ...]
    timings: Mapping[str, float]
    memory: MemoryUse
    audio: npt.NDArray[np.float32] | None = None
    sample_rate: int | None = None
    audio_latents: Array | None = None

    def save(self, path: str | Path, *, frame_rate: float | None = None, quality: int | None = None) -> list[Path]:
        """Write each video (`.mp4`, `.webm`, `.gif`, or PNGs as `folder/%05d.png`); several get `-0`, `-1`, ... names.

        MP4 and WebM have the video's sound; GIF and PNG are silent.

        Raises:
            RequestError: there are no frames, the path cannot be written, or its format lacks the rate or quality.
            BackendError: PyAV is missing or fails, or memory runs out.
        """
        if self.frames is None:
            raise RequestError(
                "this result holds latents", expected="frames to save", fix="Generate with output_type='np' or 'uint8'."
            )
        rate = self.frame_rate if frame_rate is None else frame_rate
        paths = _checked_paths(path, len(self.frames), frame_rate=rate, quality=quality)
        sounds = _sounds(self.audio, self.sample_rate, paths)
        return _save([self.frames], self.frames.shape, paths, sounds, frame_rate=rate, quality=quality)

    def save_audio(self, path: str | Path) -> list[Path]:
        """Write each video's sound as a WAV file of 16 bits; several get `-0`, `-1`, ... names.

        Raises:
            RequestError: there is no sound, or the path cannot be written.
        """
        return _save_audio(self.audio, self.sample_rate, path)


class FrameStream:
    """The frames of a run while they are decoded: an iterator of (B, n, height, width, 3) pieces along time.

    `shape` is (B, num_frames, height, width, 3) of all of them; `frame_rate`, `seeds`, `timings`, `memory`, `audio` and
    `sample_rate` are as in `Result`: sound is whole before the first frame is, times and memory are at the end.
    A context manager: left early, it stops the decoding and frees the pipeline for the next request.
    """

    def __init__(
        self,
        run: Generator[Any, None, None],
        output: Output,
        frame_rate: float,
        timings: dict[str, float],
        memory: MemoryUse,
    ) -> None:
        """`run` gives the frames of `output` when they are asked for."""
        assert output.frames is not None
        self.shape = output.frames.shape
        self.frame_rate, self.seeds, self.timings, self.memory = frame_rate, output.seeds, timings, memory
        self.audio, self.sample_rate = output.audio, output.sample_rate
        self._frames: Frames = replace(output.frames, pieces=run)
        self._run = run
        self._begun = False  # some of it was read, or it is closed

    def __iter__(self) -> Iterator[Array]:
        return self

    def __next__(self) -> Array:
        self._check_idle()
        self._begun = True
        piece: Array = next(self._run)
        return piece

    def whole(self) -> Array:
        """(B, num_frames, height, width, 3): all frames, of a stream that nobody has read from.

        Raises:
            RequestError: some of it was read, or it is closed.
            BackendError: decoding fails, or memory runs out.
        """
        self._begin()
        with _explaining_memory("the frames"):
            return self._frames.whole()

    def save(self, path: str | Path, *, frame_rate: float | None = None, quality: int | None = None) -> list[Path]:
        """As `Result.save`; the frames are written while later ones are decoded, and are never all in memory.

        The stream is closed then; where the path alone is refused, it is not, and another may be tried.

        Raises:
            RequestError: as `Result.save`; or some of the stream was read, or it is closed.
            BackendError: as `Result.save`, or decoding fails.
        """
        rate = self.frame_rate if frame_rate is None else frame_rate
        paths = _checked_paths(path, self.shape[0], frame_rate=rate, quality=quality)
        sounds = _sounds(self.audio, self.sample_rate, paths)
        self._begin()
        with self:
            return _save(self, self.shape, paths, sounds, frame_rate=rate, quality=quality)

    def save_audio(self, path: str | Path) -> list[Path]:
        """As `Result.save_audio`; the stream stays as it is.

        Raises:
            RequestError: as `Result.save_audio`.
        """
        return _save_audio(self.audio, self.sample_rate, path)

    def close(self) -> None:
        """Decode no further, and free the pipeline.

        Raises:
            RequestError: another thread is reading from the stream.
        """
        self._check_idle()
        self._begun = True
        self._run.close()

    def _begin(self) -> None:
        """Refuse what needs all frames where some are gone."""
        if self._begun:
            raise RequestError(
                "a stream that was read from or closed",
                expected="one with all of its frames",
                fix="Keep the pieces that were read, or make the stream again with the same seed.",
            )
        self._begun = True

    def _check_idle(self) -> None:
        if inspect.getgeneratorstate(self._run) == inspect.GEN_RUNNING:
            raise RequestError(
                "another thread is reading from this stream",
                expected="one reader at a time",
                fix="Read and close it in one thread.",
            )

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked_paths(path: str | Path, videos: int, *, frame_rate: float, quality: int | None) -> list[Path]:
    """A path a video, all of which can be written, before the first is.

    Raises:
        RequestError: one cannot.
    """
    paths = numbered(path, videos)
    for target in paths:
        check_output_path(target, frame_rate=frame_rate, quality=quality)
    return paths


def _sounds(audio: Array | None, sample_rate: int | None, paths: list[Path]) -> list[Sound | None]:
    """The sound of each file: none where there is none, or where the format has no place for it.

    Raises:
        RequestError: the audio is no sound, or the format does not take its rate.
    """
    if audio is None or not holds_sound(paths[0]):
        return [None] * len(paths)
    assert sample_rate is not None
    sounds = [Sound(samples=samples, sample_rate=sample_rate) for samples in audio]
    for target, sound in zip(paths, sounds, strict=True):
        check_sound(sound, target)
    return [*sounds]


def _save_audio(audio: Array | None, sample_rate: int | None, path: str | Path) -> list[Path]:
    if audio is None or sample_rate is None:
        raise RequestError(
            "this result holds no sound", expected="frames of a model that makes sound", fix="Use an LTX-2 bundle."
        )
    paths = numbered(path, len(audio))
    for target in paths:
        check_wav_path(target)
    return [
        save_wav(Sound(samples=samples, sample_rate=sample_rate), target)
        for samples, target in zip(audio, paths, strict=True)
    ]


def _save(
    pieces: Iterable[Array],
    shape: tuple[int, ...],
    paths: list[Path],
    sounds: list[Sound | None],
    *,
    frame_rate: float,
    quality: int | None,
) -> list[Path]:
    """Write videos of which all pieces together have this shape, a path each; each file is whole or absent."""
    height, width = shape[2:4]
    with _explaining_memory(f"saving {paths[0]}"), ExitStack() as stack:
        writers = [
            stack.enter_context(
                VideoWriter(target, frame_rate=frame_rate, height=height, width=width, quality=quality, sound=sound)
            )
            for target, sound in zip(paths, sounds, strict=True)
        ]
        for piece in pieces:
            for video, writer in zip(piece, writers, strict=True):
                _write(video, writer)
    return paths


def _write(video: Array, writer: VideoWriter) -> None:
    """A frame at a time: bytes of a whole video would be another quarter of its floats."""
    for frame in video:
        writer.write(frame[np.newaxis] if frame.dtype == np.uint8 else to_uint8(frame[np.newaxis, np.newaxis])[0])


def numbered(path: str | Path, count: int) -> list[Path]:
    """One path a video: the path itself for one, `name-0.mp4`, `name-1.mp4`, ... for several.

    Raises:
        RequestError: no name to number.
    """
    output = Path(os.path.expanduser(path))
    if count == 1:
        return [output]
    named = output.parent if output.suffix.lower() == ".png" else output  # each PNG sequence has a folder
    if named.name in ("", ".."):
        raise RequestError(
            f"{path} for {count} videos", expected="a name that takes numbers", fix="Use out.mp4 or frames/%05d.png."
        )
    if named is output:
        return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]
    return [named.with_name(f"{named.name}-{i}") / output.name for i in range(count)]


def stopwatch(timings: dict[str, float]) -> Stage:
    """A `Stage` that adds each stage's seconds to `timings`.

    Networks load when a stage first needs them; that is "load" wherever it happens, and no part of that stage.
    """
    return partial(_Stopwatch, timings)


class _Stopwatch:
    """Times one stage. Not a generator, which takes ten microseconds more: a twelfth of a small step's host time."""

    __slots__ = ("_loaded", "_name", "_start", "_timings")

    def __init__(self, timings: dict[str, float], name: str) -> None:
        self._timings, self._name = timings, name

    def __enter__(self) -> None:
        self._loaded = self._timings.get("load", 0.0)
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        seconds = time.perf_counter() - self._start
        if self._name not in ("load", "total"):
            seconds -= self._timings.get("load", 0.0) - self._loaded
        self._timings[self._name] = self._timings.get(self._name, 0.0) + seconds


@contextmanager
def _explaining_memory(doing: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(f"{doing}: {error or 'no more memory'}") from error
