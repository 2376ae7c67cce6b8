"""From latents of a sound to its samples: the audio VAE's decoder, then the vocoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models

Array = npt.NDArray[np.float32]


def decode_sound(models: Models, latents: Array) -> Array:
    """(B, C, S, M) latents of the audio VAE's scale → (B, channels, samples) in [-1, 1].

    One video's after the other: a vocoder's activations are large, and a batch is no quicker.

    Source: diffusers `LTX2Pipeline.__call__`, after the denoising loop.
    """
    decoder = models.session("audio_vae_decoder")
    spectrograms = [decoder.run({"latents": each[np.newaxis]})["mel"] for each in latents]
    vocoder = models.session("vocoder")
    return np.concatenate([vocoder.run({"mel": each})["audio"] for each in spectrograms])
