"""LTX-2's sound: spectrograms and samples next to diffusers' modules, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE
from make_tiny_ltx2 import AUDIO_VAE, EXTENDED, FIRST, VOCODER, tiny_audio_vae, tiny_vocoder

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.errors import SourceError
from telecine_export.export import Progress, export_component
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2 import sound
from telecine_export.families.ltx2.checks import check_audio_vae, check_vocoder
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source, open_source

# One pass in float32, summed in another order than torch's: spectrograms are of size 1, samples of 0.3.
TOLERANCE = 2e-5
# Sums above pass through a logarithm, which multiplies what is wrong with quiet bands.
EXTENDED_TOLERANCE = 1e-4
LENGTHS = ((1, 1), (3, 7), (1, 26))  # (sounds, latents or frames of the spectrogram); traced at 2 x 5 and 2 x 9


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    tiny_audio_vae(seed=0).save_pretrained(tmp_path / "audio_vae")
    return open_source(str(tmp_path))


def compare(source: Source, spec: GraphSpec, reference: Any, tolerance: float) -> None:
    """Export one graph, and run it and `reference` at every length."""
    folder = source.root / "out"
    folder.mkdir()
    graph = export_component(source, folder, [spec], precision="fp32", opset=23, progress=Progress()).graphs["main"]
    ((name, sample),) = spec.sample.items()
    random = np.random.default_rng(0)
    with OnnxRuntimeSession.load(
        graph, folder / graph.file.path, device="cpu", options=OnnxRuntimeOptions()
    ) as session:
        for batch, length in LENGTHS:
            given = random.standard_normal((batch, sample.shape[1], length, sample.shape[3]), dtype=np.float32)
            with torch.no_grad():
                expected = reference(torch.from_numpy(given)).numpy()
            assert expected.std() > 0.05
            np.testing.assert_allclose(session.run({name: given})[spec.output], expected, rtol=0, atol=tolerance)


def test_the_audio_vaes_decoder(source: Source) -> None:
    vae = tiny_audio_vae(seed=0).eval()
    compare(source, sound.audio_vae_decoder_spec(source), lambda latents: vae.decode(latents).sample, TOLERANCE)


@pytest.mark.parametrize(("style", "tolerance"), [("2.0", TOLERANCE), ("2.3", EXTENDED_TOLERANCE)])
def test_the_vocoder(style: str, tolerance: float, source: Source) -> None:
    vocoder = tiny_vocoder(style=style, seed=0).eval()
    vocoder.save_pretrained(source.root / "vocoder")
    compare(source, sound.vocoder_spec(source), vocoder, tolerance)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"causality_axis": "width"}, "causality_axis width; expected height"),
        ({"attn_resolutions": (64,)}, "attn_resolutions"),
        ({"mel_bins": None}, "mel_bins None; expected a multiple of 4"),
        ({"ch_mult": (1, 2)}, "2 levels; expected 3"),
        ({"base_channels": 16}, "base_channels 16; expected 8"),
    ],
    ids=str,
)
def test_audio_vaes_that_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        check_audio_vae(Path("audio_vae"), complete(AutoencoderKLLTX2Audio, AUDIO_VAE | change))


def test_vocoders_that_are_refused() -> None:
    audio = complete(AutoencoderKLLTX2Audio, AUDIO_VAE)
    with pytest.raises(SourceError, match="in_channels 128; expected 32"):
        check_vocoder(Path("vocoder"), complete(LTX2Vocoder, FIRST), audio)
    config = complete(LTX2VocoderWithBWE, VOCODER | EXTENDED | {"hop_length": 60})
    with pytest.raises(SourceError, match="160 samples a frame and a hop_length of 60"):
        check_vocoder(Path("vocoder"), config, audio)
