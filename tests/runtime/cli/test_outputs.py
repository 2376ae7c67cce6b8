"""Latents in a file, with those of the sound where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from telecine.cli.outputs import save_latents
from telecine.peak_memory import MemoryUse
from telecine.results import Result

LATENTS, AUDIO = np.arange(6, dtype=np.float32).reshape(1, 6), np.ones((1, 2), np.float32)


@pytest.mark.parametrize("audio", [None, AUDIO])
def test_latents_lie_beside_those_of_the_sound(tmp_path: Path, audio: np.ndarray | None) -> None:
    made = Result(
        frames=None, latents=LATENTS, frame_rate=24.0, seeds=(0,), timings={}, memory=MemoryUse(), audio_latents=audio
    )
    read = load_file(save_latents(made, tmp_path / "latents.safetensors"))
    assert read.keys() == ({"latents"} if audio is None else {"latents", "audio_latents"})
    np.testing.assert_array_equal(read["latents"], LATENTS)
    if audio is not None:
        np.testing.assert_array_equal(read["audio_latents"], audio)
