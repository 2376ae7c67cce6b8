"""LTX-2's video VAE: its graphs next to diffusers' modules, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from make_tiny_ltx2 import VAE, VAES, tiny_ltx2_vae

from telecine.backends.base import Session
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.errors import SourceError
from telecine_export.export import Progress, export_component
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2 import vae as family
from telecine_export.families.ltx2.checks import check_vae
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source, open_source

# Fewer levels than the releases have, which `verify` of the tiny bundles runs: what is told of each, at 4 pixels and 2
# frames a latent.
SHALLOW: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
    "layers_per_block": (1, 0, 1),
    "spatio_temporal_scaling": (True, True),
    "downsample_type": ("spatial", "temporal"),
    "decoder_block_out_channels": (8,),
    "decoder_layers_per_block": (1, 1),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    "upsample_type": ("spatiotemporal",),
    "upsample_residual": (True,),
    "upsample_factor": (2,),
    "patch_size": 2,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "reflected": {"encoder_spatial_padding_mode": "reflect", "timestep_conditioning": True, "decoder_causal": False},
    "causal": {"decoder_spatial_padding_mode": "zeros", "upsample_residual": (False,), "decoder_causal": True},
}
# One pass in float32: convolutions of 27 * 32 products, summed in another order than torch's.
TOLERANCE = 2e-5


@pytest.fixture(params=["reflected", pytest.param("causal", marks=pytest.mark.slow)])
def saved(request: Any, tmp_path: Path) -> tuple[Any, Source]:
    """A shallow VAE, and the source that has it."""
    vae = tiny_ltx2_vae(style="2.0", seed=0, **SHALLOW | VARIANTS[request.param]).eval()
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    return vae, open_source(str(tmp_path))


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Source, GraphSpec], Session]:
    def export(source: Source, spec: GraphSpec) -> Session:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        component = export_component(source, folder, [spec], precision="fp32", opset=23, progress=Progress())
        graph = component.graphs["main"]
        return OnnxRuntimeSession.load(graph, folder / graph.file.path, device="cpu", options=OnnxRuntimeOptions())

    return export


def test_both_graphs_at_sizes_that_were_not_traced(saved: tuple[Any, Source], load: Callable[..., Session]) -> None:
    vae, source = saved
    random = np.random.default_rng(0)
    with load(source, family.encoder_spec(source)) as encoder, torch.no_grad():
        for batch, frames, height, width in ((1, 1, 8, 20), (3, 7, 12, 8)):
            video = random.uniform(-1, 1, (batch, 3, frames, height, width)).astype(np.float32)
            expected = vae.encode(torch.from_numpy(video)).latent_dist.mode().numpy()
            np.testing.assert_allclose(encoder.run({"video": video})["means"], expected, rtol=0, atol=TOLERANCE)
    with load(source, family.decoder_spec(source)) as decoder, torch.no_grad():
        for batch, frames, height, width in ((1, 1, 2, 5), (3, 4, 3, 2)):
            latents = random.standard_normal((batch, 4, frames, height, width), dtype=np.float32)
            feeds = {"latents": latents}
            if vae.config.timestep_conditioning:
                feeds["timestep"] = np.linspace(0.05, 0.8, batch, dtype=np.float32)
            given = [torch.from_numpy(each) for each in feeds.values()]
            expected = vae.decode(*given).sample.numpy()
            assert expected.shape == (batch, 3, 2 * frames - 1, 4 * height, 4 * width)
            assert expected.std() > 0.1
            np.testing.assert_allclose(decoder.run(feeds)["video"], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("style", VAES)
def test_the_releases_contracts(style: str) -> None:
    config = complete(AutoencoderKLLTX2Video, VAE | VAES[style])
    check_vae(Path("vae"), config, family.compression_ratios(config))
    encoder, decoder = family.encoder_graph(config), family.decoder_graph(config)
    pixels = {2: "8*latent_frames-7", 3: "32*latent_height", 4: "32*latent_width"}
    assert encoder.axes["video"] == {0: "batch", **pixels}
    assert decoder.output_shape == ("batch", 3, *pixels.values())
    assert set(decoder.sample) == {"latents"}
    assert set(family.decoder_graph(config | {"timestep_conditioning": True}).sample) == {"latents", "timestep"}
    assert family.least_sides(config) == {"vae_encoder": 1, "vae_decoder": 2 if style == "2.0" else 1}
    widest = family.widest_activations(config)
    assert set(widest) == {"vae_encoder", "vae_decoder"}
    assert min(widest.values()) > 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder_inject_noise": (True, False, False, False)}, "decoder_inject_noise; expected none"),
        ({"patch_size_t": 2}, "patch_size_t 2"),
        ({"decoder_spatial_padding_mode": "circular"}, "zeros and circular; expected zeros or reflect"),
        ({"out_channels": 4}, "3 channels in and 4 out"),
        ({"spatial_compression_ratio": None}, "compression ratios 8 and 64; expected 8 and 32"),
        ({"temporal_compression_ratio": 4}, "compression ratios 4 and 32; expected 8 and 32"),
    ],
    ids=str,
)
def test_what_no_graph_covers_is_refused(change: dict[str, Any], words: str) -> None:
    config = complete(AutoencoderKLLTX2Video, VAE | VAES["2.0"] | change)
    with pytest.raises(SourceError, match=words):
        check_vae(Path("vae"), config, family.compression_ratios(config))
