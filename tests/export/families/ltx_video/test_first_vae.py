"""The VAE of LTX-Video 0.9.0, whose blocks the tiny checkpoints of the other tests do not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from telecine.backends.base import Session
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine_export.export import Progress, export_component
from telecine_export.families.ltx_video import networks
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

# Strided convolutions down, no residual and no timestep up: diffusers' defaults, at a sixteenth of the width.
SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "decoder_block_out_channels": (8, 16, 32, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "latent_channels": 8,
}
# One pass in float32: convolutions of 27 * 32 products, summed in another order than torch's.
TOLERANCE = 2e-5


@pytest.fixture
def vae(tmp_path: Path) -> Any:
    torch.manual_seed(0)
    made: Any = AutoencoderKLLTXVideo(**SMALL).eval()
    made.save_pretrained(tmp_path / "vae")
    assert networks.compression_ratios(made.config) == (8, 32)
    return made


def load(spec: GraphSpec, folder: Path) -> Session:
    source = Source(root=folder, pipeline_class="LTXPipeline")
    component = export_component(source, folder, [spec], precision="fp32", opset=23, progress=Progress())
    graph = component.graphs["main"]
    return OnnxRuntimeSession.load(graph, folder / graph.file.path, device="cpu", options=OnnxRuntimeOptions())


@pytest.mark.slow
def test_its_encoder_at_sizes_that_were_not_traced(vae: Any, tmp_path: Path) -> None:
    """Its strided convolutions are those of the tiny checkpoint that injects noise too."""
    rng = np.random.default_rng(0)
    with load(networks.vae_encoder(vae.config), tmp_path) as encoder, torch.no_grad():
        for batch, frames, height, width in ((1, 1, 32, 32), (2, 25, 64, 96)):
            video = rng.uniform(-1, 1, (batch, 3, frames, height, width)).astype(np.float32)
            expected = vae.encoder(torch.from_numpy(video))[:, :9].numpy()
            np.testing.assert_allclose(encoder.run({"video": video})["moments"], expected, atol=TOLERANCE, rtol=0)


def test_its_decoder_at_sizes_that_were_not_traced(vae: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with load(networks.vae_decoder(vae.config), tmp_path) as decoder, torch.no_grad():
        for batch, frames, height, width in ((1, 1, 1, 1), (2, 4, 2, 3)):
            latents = rng.standard_normal((batch, 8, frames, height, width), dtype=np.float32)
            expected = vae.decode(torch.from_numpy(latents)).sample.numpy()
            assert expected.shape == (batch, 3, 8 * frames - 7, 32 * height, 32 * width)
            np.testing.assert_allclose(decoder.run({"latents": latents})["video"], expected, atol=TOLERANCE, rtol=0)
