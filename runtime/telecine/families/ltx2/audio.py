"""Latents of sound: how many there are, how they become tokens, and their statistics.

Axes: B videos, C channels, S latents along time, M bands of the mel scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
# Frames a second between which the sound is as long as engines take; the slowest is diffusers' default.
FASTEST, SLOWEST = 60.0, 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioGrid:
    """Samples a second of the mel spectrogram's source, samples a frame of it, and what a latent spans of it.

    A latent is `temporal` frames of the spectrogram and `mel` of its `mel_bins` bands, in `channels` channels. The
    vocoder makes `sample_rate` samples a second.

    Source: diffusers `AutoencoderKLLTX2Audio` and the vocoder's `output_sampling_rate`.
    """

    sampling_rate: int
    hop_length: int
    temporal: int
    mel: int
    mel_bins: int
    channels: int
    sample_rate: int

    @property
    def bands(self) -> int:
        """M: latents beside each other at one time."""
        return self.mel_bins // self.mel

    def latents(self, num_frames: int, frame_rate: float) -> int:
        """S of the sound of so many frames of video; a half is rounded to even, as Python does.

        Source: diffusers `LTX2Pipeline.__call__`, step 4.
        """
        return round(num_frames / frame_rate * (self.sampling_rate / self.hop_length / float(self.temporal)))

    def array_shape(self, batch: int, latents: int) -> tuple[int, int, int, int]:
        """(B, C, S, M) of an array of so many latents."""
        return batch, self.channels, latents, self.bands


def pack(latents: Array) -> Array:
    """Fold (B, C, S, M) latents into (B, S, C * M) tokens: bands vary fastest.

    Source: diffusers `LTX2Pipeline._pack_audio_latents`.
    """
    batch, _, count, _ = latents.shape
    return np.ascontiguousarray(latents.transpose(0, 2, 1, 3)).reshape(batch, count, -1)


def unpack(tokens: Array, bands: int) -> Array:
    """Unfold (B, S, C * M) tokens into (B, C, S, M) latents: the inverse of `pack`.

    Source: diffusers `LTX2Pipeline._unpack_audio_latents`.
    """
    batch, count, _ = tokens.shape
    return tokens.reshape(batch, count, -1, bands).transpose(0, 2, 1, 3).copy()


def normalize(tokens: Array, mean: Array, std: Array) -> Array:
    """Bring (B, S, C * M) tokens of the VAE to the transformer's scale, by (C * M,) mean and std.

    Source: diffusers `LTX2Pipeline._normalize_audio_latents`, which applies them to packed latents.
    """
    out = np.subtract(tokens, mean, dtype=np.float32)
    out /= std
    return out


def denormalize(tokens: Array, mean: Array, std: Array) -> Array:
    """Bring (B, S, C * M) tokens of the transformer to the VAE's scale, by (C * M,) mean and std.

    Source: diffusers `LTX2Pipeline._denormalize_audio_latents`.
    """
    out = np.multiply(tokens, std, dtype=np.float32)
    out += mean
    return out
