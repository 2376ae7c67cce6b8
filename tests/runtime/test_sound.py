"""Sound in WAV files and beside frames: it is the same sound, and it comes when its frame does."""

from __future__ import annotations

import itertools
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from telecine.errors import RequestError
from telecine.video import Sound, holds_sound, save_video
from telecine.video.sound import save_wav

av = pytest.importorskip("av")

RATE = 24000


def tone(seconds: float, *, rate: int = RATE, channels: int = 2) -> Sound:
    times = np.arange(round(seconds * rate)) / rate
    waves = [0.5 * np.sin(2 * np.pi * 220 * (channel + 1) * times) for channel in range(channels)]
    return Sound(samples=np.stack(waves).astype(np.float32), sample_rate=rate)


def heard(path: Path) -> tuple[np.ndarray, float]:
    """(channels, samples) of a file, and the second at which they begin."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), float(frames[0].pts * frames[0].time_base)


def seen(path: Path) -> tuple[np.ndarray, list[float]]:
    """(F,) mean brightness of a file's frames, and the second at which each is shown."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.array([frame.to_ndarray(format="gray").mean() for frame in frames]), [frame.time for frame in frames]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_holds_the_sound_to_half_a_step_of_16_bits(tmp_path: Path, channels: int) -> None:
    sound = tone(0.1, channels=channels)
    sound.samples[0, :2] = 2, -2  # clipped
    path = save_wav(sound, tmp_path / "sound.wav")
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (channels, 2, RATE)
        read = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, channels).T
    expected = np.clip(sound.samples, -1, 1)
    np.testing.assert_allclose(read / 32767, expected, rtol=0, atol=0.5 / 32767 + 1e-7)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_holds_both_streams(tmp_path: Path, name: str, channels: int) -> None:
    sound = tone(1.0, channels=channels)
    path = save_video(np.zeros((24, 32, 48, 3), np.uint8), tmp_path / name, frame_rate=24, sound=sound)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        rate, layout = container.streams.audio[0].rate, container.streams.audio[0].layout.name
    assert layout == {1: "mono", 2: "stereo"}[channels]
    samples, begin = heard(path)
    assert abs(begin) < 1 / 24
    assert abs(samples.shape[1] / rate - 1.0) < 1 / 24
    # The tone of each channel is the loudest of its frequencies: channels are neither swapped nor mixed.
    for channel in range(channels):
        spectrum = np.abs(np.fft.rfft(samples[channel]))
        assert np.argmax(spectrum) * rate / samples.shape[1] == pytest.approx(220 * (channel + 1), abs=3)


@pytest.mark.parametrize("frame_rate", [24.0, 30000 / 1001])
def test_a_flash_and_its_click_come_within_one_frame(tmp_path: Path, frame_rate: float) -> None:
    frames = np.zeros((41, 32, 48, 3), np.uint8)
    samples = np.zeros((2, 40000), np.float32)
    flashes = (8, 29)
    for frame in flashes:
        frames[frame] = 255
        start = round(frame / frame_rate * RATE)
        samples[:, start : start + 200] = 0.9 * np.sin(np.arange(200) * 0.4)
    sound = Sound(samples=samples, sample_rate=RATE)
    path = save_video(frames, tmp_path / "out.mp4", frame_rate=frame_rate, sound=sound)
    brightness, times = seen(path)
    waveform, begin = heard(path)
    loud = np.flatnonzero(np.abs(waveform).max(axis=0) > 0.4) / RATE + begin
    shown = [times[index] for index in np.flatnonzero(brightness > 128)]
    assert len(shown) == len(flashes)
    for second in shown:
        assert np.abs(loud - second).min() < 1 / frame_rate
    assert 0 <= waveform.shape[1] - samples.shape[1] <= 1024  # nothing is cut off; AAC fills its last packet


@pytest.mark.parametrize("seconds", [0.4, 2.0])
def test_sound_may_be_shorter_or_longer_than_the_frames(tmp_path: Path, seconds: float) -> None:
    path = save_video(np.zeros((24, 32, 32, 3), np.uint8), tmp_path / "out.mp4", frame_rate=24, sound=tone(seconds))
    assert len(seen(path)[0]) == 24
    assert heard(path)[0].shape[1] / RATE == pytest.approx(seconds, abs=1 / 24)


def test_packets_lie_beside_the_frames_that_they_belong_to(tmp_path: Path) -> None:
    path = save_video(np.zeros((48, 32, 32, 3), np.uint8), tmp_path / "out.mp4", frame_rate=24, sound=tone(2.0))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.pos is not None and packet.size]
        by_place = sorted(packets, key=lambda packet: packet.pos)
        times = [float(Fraction(packet.dts) * packet.time_base) for packet in by_place]
    # In the file's order time goes on, but for what an encoder looks ahead and a chunk of a second.
    assert max(before - after for before, after in itertools.pairwise(times)) < 1.5


@pytest.mark.parametrize(("name", "rate"), [("out.gif", RATE), ("frames/%05d.png", RATE), ("out.webm", 44100)])
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, rate: int) -> None:
    with pytest.raises(RequestError, match="sound"):
        save_video(np.zeros((2, 32, 32, 3), np.uint8), tmp_path / name, frame_rate=24, sound=tone(0.1, rate=rate))
    assert list(tmp_path.iterdir()) == []


def test_formats_say_whether_they_hold_sound() -> None:
    assert holds_sound("a.mp4")
    assert not holds_sound("a.gif")


@pytest.mark.parametrize(
    "sound",
    [
        {"samples": np.zeros((2, 10)), "sample_rate": RATE},  # float64
        {"samples": np.zeros((3, 10), np.float32), "sample_rate": RATE},
        {"samples": np.zeros(10, np.float32), "sample_rate": RATE},
        {"samples": np.zeros((1, 0), np.float32), "sample_rate": RATE},
        {"samples": np.full((1, 4), np.nan, np.float32), "sample_rate": RATE},
        {"samples": np.zeros((1, 4), np.float32), "sample_rate": 0},
        {"samples": np.zeros((1, 4), np.float32), "sample_rate": 24000.0},
    ],
)
def test_what_is_no_sound_is_refused(sound: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Sound(**sound)  # type: ignore[arg-type]


def test_a_wav_file_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\.wav"):
        save_wav(tone(0.1), tmp_path / "sound.mp3")
