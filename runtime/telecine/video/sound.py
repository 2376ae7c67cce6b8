"""Sound beside the frames of a video file, or in a WAV file of its own."""

from __future__ import annotations

import os
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.atomic import atomic_file, check_writable
from telecine.errors import RequestError
from telecine.video.ffmpeg import check_encoder, require_av
from telecine.video.formats import Format, format_of

LAYOUTS = {1: "mono", 2: "stereo"}
BITS_A_SECOND = 96_000  # of each channel, where AAC and Opus are hard to tell from what they were made of
LARGEST = 32767  # of 16 bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sound:
    """(channels, samples) float32 in [-1, 1], and samples a second; what lies outside is clipped.

    Raises:
        RequestError: no such array, values that are not finite, or a rate that is none.
    """

    samples: npt.NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        samples, rate = self.samples, self.sample_rate
        shape = getattr(samples, "shape", None)
        floats = isinstance(samples, np.ndarray) and samples.dtype == np.float32
        if not floats or samples.ndim != 2 or len(samples) not in LAYOUTS or not samples.shape[1]:
            raise RequestError(
                f"the sound is {getattr(samples, 'dtype', type(samples).__name__)} {shape}",
                expected="float32 (channels, samples), 1 or 2 channels",
                fix="generate() gives such sound, with a batch axis in front: pass audio[0].",
            )
        if not np.isfinite(samples).all():
            raise RequestError("the sound holds NaN or infinity", expected="finite numbers", fix="Look at its maker.")
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
            raise RequestError(
                f"the sample rate is {rate!r}",
                expected="a whole number of samples a second",
                fix="Pass 24000 or 48000.",
            )


def holds_sound(path: str | os.PathLike[str]) -> bool:
    """Whether the format that a path's suffix names has a place for sound.

    Raises:
        RequestError: an unknown suffix.
    """
    return format_of(Path(path)).sound is not None


def check_sound(sound: Sound, path: Path) -> None:
    """
    Raises:
        RequestError: the path's format has no place for sound, or not at this rate.
        BackendError: PyAV is missing, or its FFmpeg lacks the encoder.
    """
    spec = format_of(path)
    if spec.sound is None:
        raise RequestError(
            f"{path} with sound", expected="a format that holds it: mp4 or webm", fix="Write the sound as a WAV file."
        )
    if sound.sample_rate not in spec.sound_rates:
        raise RequestError(
            f"sound of {sound.sample_rate} samples a second for {path}",
            expected=f"one of {', '.join(map(str, spec.sound_rates))}",
            fix="Write the sound as a WAV file, which takes any rate.",
        )
    check_encoder(spec.sound)


def save_wav(sound: Sound, path: str | os.PathLike[str]) -> Path:
    """Write a sound as a WAV file of 16 bits; it is whole, or absent.

    Raises:
        RequestError: another suffix than .wav, a place that cannot be written, or a full disk.
    """
    output = check_wav_path(path)
    samples = np.rint(np.clip(sound.samples, -1, 1) * np.float32(LARGEST)).astype("<i2")
    with atomic_file(output) as temporary:
        try:
            with wave.open(str(temporary), "wb") as file:
                file.setnchannels(len(samples))
                file.setsampwidth(2)
                file.setframerate(int(sound.sample_rate))
                file.writeframes(np.ascontiguousarray(samples.T).tobytes())
        except OSError as error:
            raise RequestError(
                f"{output} could not be written ({error.strerror or error})",
                expected="a disk with room",
                fix="Free space, or choose another path.",
            ) from error
    return output


def check_wav_path(path: str | os.PathLike[str]) -> Path:
    """The path as a Path, if a WAV file can be written there; touches nothing.

    Raises:
        RequestError: another suffix, or a place that cannot be written.
    """
    output = Path(os.path.expanduser(path))
    if output.suffix.lower() != ".wav":
        raise RequestError(f"{output} for sound", expected="a name that ends in .wav", fix="Name it sound.wav.")
    check_writable(output)
    return output


class SoundEncoder:
    """A sound into a container that also takes frames, up to the time that they have reached."""

    def __init__(self, container: Any, spec: Format, sound: Sound) -> None:
        self._container, self._sound, self._done = container, sound, 0
        self._layout = LAYOUTS[len(sound.samples)]
        self._stream = container.add_stream(spec.sound, rate=int(sound.sample_rate))
        context = self._stream.codec_context
        context.layout, context.bit_rate = self._layout, BITS_A_SECOND * len(sound.samples)

    def advance(self, seconds: Fraction) -> None:
        """Encode what is heard before this time."""
        until = min(round(seconds * self._sound.sample_rate), self._sound.samples.shape[1])
        if until > self._done:
            self._encode(self._sound.samples[:, self._done : until])

    def finish(self) -> None:
        """Encode what is left, and what the encoder still holds."""
        if self._done < self._sound.samples.shape[1]:
            self._encode(self._sound.samples[:, self._done :])
        self._container.mux(self._stream.encode(None))

    def _encode(self, samples: npt.NDArray[np.float32]) -> None:
        av = require_av()
        clipped = np.ascontiguousarray(np.clip(samples, -1, 1))
        frame = av.AudioFrame.from_ndarray(clipped, format="fltp", layout=self._layout)
        frame.sample_rate = int(self._sound.sample_rate)
        frame.pts, frame.time_base = self._done, Fraction(1, int(self._sound.sample_rate))
        self._done += samples.shape[1]
        self._container.mux(self._stream.encode(frame))
