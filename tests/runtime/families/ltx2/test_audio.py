"""Latents of sound: counts, layout and statistics against diffusers' own, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from telecine.families.ltx2 import audio
from telecine.families.ltx2.audio import AudioGrid

GRID = AudioGrid(sampling_rate=16000, hop_length=160, temporal=4, mel=4, mel_bins=64, channels=8, sample_rate=24000)
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("num_frames", "frame_rate", "expected"),
    [(121, 24.0, 126), (121, 25.0, 121), (1, 24.0, 1), (9, 30.0, 8), (3, 50.0, 2), (5, 50.0, 2), (257, 23.976, 268)],
)
def test_latents_of_so_many_frames(num_frames: int, frame_rate: float, expected: int) -> None:
    # 1.5 and 2.5 latents are 2, as Python rounds halves.
    assert GRID.latents(num_frames, frame_rate) == expected


def test_latents_fold_into_tokens_and_back() -> None:
    latents = RANDOM.standard_normal((2, 8, 5, 16), np.float32)
    packed = audio.pack(latents)
    np.testing.assert_array_equal(packed, LTX2Pipeline._pack_audio_latents(torch.from_numpy(latents)).numpy())
    np.testing.assert_array_equal(audio.unpack(packed, GRID.bands), latents)
    assert GRID.array_shape(2, 5) == latents.shape


@pytest.mark.parametrize("name", ["normalize", "denormalize"])
def test_statistics_are_of_packed_latents(name: str) -> None:
    tokens = RANDOM.standard_normal((2, 5, 128), np.float32)
    mean, std = RANDOM.standard_normal(128, np.float32), RANDOM.uniform(0.5, 2, 128).astype(np.float32)
    theirs = getattr(LTX2Pipeline, f"_{name}_audio_latents")(*map(torch.from_numpy, (tokens, mean, std)))
    np.testing.assert_array_equal(getattr(audio, name)(tokens, mean, std), theirs.numpy())
