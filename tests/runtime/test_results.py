"""Stages of a run, on a clock that the test turns; and sound, as far as results carry it into files."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telecine import results
from telecine.errors import RequestError
from telecine.families.base import Frames, Output
from telecine.peak_memory import MemoryUse
from telecine.results import FrameStream, Result, stopwatch


def test_loading_counts_for_itself_wherever_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(results.time, "perf_counter", lambda: float(next(ticks)))
    timings: dict[str, float] = {}
    stage = stopwatch(timings)
    with stage("total"):  # 0
        with stage("text"), stage("load"):  # 1, 2, 3, 4
            pass
        with stage("denoise"):  # 5
            for _ in range(2):
                with stage("network"):  # 6, 7, 8, 9
                    pass
        # 10, 11
    assert timings == {"total": 11, "text": 2, "load": 1, "denoise": 5, "network": 2}


RATE = 24000
FRAMES = np.zeros((2, 9, 32, 48, 3), np.uint8)
AUDIO = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2, 9000)).astype(np.float32)


def with_sound(audio: np.ndarray | None = AUDIO) -> Result:
    return Result(
        frames=FRAMES, latents=None, frame_rate=24.0, seeds=(0,), timings={}, memory=MemoryUse(), audio=audio,
        sample_rate=None if audio is None else RATE,
    )  # fmt: skip


def streamed() -> FrameStream:
    pieces = iter([FRAMES[:, :5], FRAMES[:, 5:]])
    output = Output(
        frames=Frames(shape=FRAMES.shape, dtype=FRAMES.dtype, pieces=pieces), audio=AUDIO, sample_rate=RATE, seeds=(0,)
    )
    return FrameStream((piece for piece in pieces), output, 24.0, {}, MemoryUse())


@pytest.mark.parametrize("made", [with_sound, streamed])
def test_each_video_is_saved_with_its_own_sound(made: Any, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    result = made()
    waves = result.save_audio(tmp_path / "out.wav")
    videos = result.save(tmp_path / "out.mp4")
    assert [path.name for path in waves + videos] == ["out-0.wav", "out-1.wav", "out-0.mp4", "out-1.mp4"]
    for path, expected in zip(waves, AUDIO, strict=True):
        with wave.open(str(path)) as file:
            read = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).T / 32767
        np.testing.assert_allclose(read, expected, rtol=0, atol=1 / 32767)
    for path in videos:
        with av.open(str(path)) as container:
            seconds = [float(stream.duration * stream.time_base) for stream in container.streams]
        assert seconds == pytest.approx([9 / 24, 9000 / RATE], abs=1 / 24)


def test_formats_without_a_place_for_sound_are_silent(tmp_path: Path) -> None:
    pytest.importorskip("av")
    assert [path.suffix for path in with_sound().save(tmp_path / "out.gif")] == [".gif", ".gif"]


def test_a_rate_that_a_format_lacks_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(RequestError, match="22050"):
        replace(with_sound(), sample_rate=22050).save(tmp_path / "out.webm")
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_sound_to_save_where_none_was_made(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no sound"):
        with_sound(None).save_audio(tmp_path / "out.wav")
