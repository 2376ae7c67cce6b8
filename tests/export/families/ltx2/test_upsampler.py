"""LTX-2's latent upsamplers: their graphs next to diffusers' module, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from make_tiny_ltx2 import tiny_ltx2_upsampler, tiny_ltx2_vae

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.errors import SourceError
from telecine_export.components import FolderComponent
from telecine_export.export import Progress, export_component
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2 import upsampler as family
from telecine_export.source import Source

# One pass in float32: convolutions of 27 * 32 products summed in another order, normalised in groups of one channel.
TOLERANCE = 3e-5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "2.0": ("2.0", {}),
    "2.3": ("2.3", {}),
    "frame by frame": ("2.3", {"dims": 2}),
    "space and time": ("2.3", {"temporal_upsample": True, "mid_channels": 64}),
}


# The first two are what `verify` of the tiny bundles runs too.
@pytest.mark.parametrize(
    "variant", ["2.0", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "2.0")]
)
def test_it_is_torchs_at_sizes_that_were_not_traced(variant: str, tmp_path: Path) -> None:
    style, config = VARIANTS[variant]
    model = tiny_ltx2_upsampler(style=style, seed=0, **config).eval()
    model.save_pretrained(tmp_path / "latent_upsampler")
    tiny_ltx2_vae(style=style, seed=0).save_pretrained(tmp_path / "vae")
    parts: dict[str, Any] = {"latent_upsampler": FolderComponent(tmp_path / "latent_upsampler")}
    source = Source(root=tmp_path, pipeline_class="LTX2Pipeline", components=parts)
    home = tmp_path / "bundle"
    home.mkdir()
    graph = export_component(
        source, home, [family.spec(source)], precision="fp32", opset=23, progress=Progress()
    ).graphs["main"]
    with OnnxRuntimeSession.load(graph, home / graph.file.path, device="cpu", options=OnnxRuntimeOptions()) as session:
        for shape in ((1, 16, 1, 3, 1), (3, 16, 2, 2, 5)):
            latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            with torch.no_grad():
                expected = model(torch.from_numpy(latents)).numpy()
            made = session.run({"latents": latents})["latents_upsampled"]
            np.testing.assert_allclose(made, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 8}, "in_channels 8; expected 16"),
        ({"spatial_upsample": False}, "neither spatial_upsample nor temporal_upsample"),
        ({"dims": 2, "temporal_upsample": True}, "dims 2 and temporal_upsample"),
        ({"rational_spatial_scale": 1.5}, "rational_spatial_scale 1.5; expected 2"),
        ({"mid_channels": 48}, "mid_channels 48; expected a multiple of 32"),
    ],
    ids=str,
)
def test_what_no_graph_covers_is_refused(change: dict[str, Any], words: str) -> None:
    config = complete(LTX2LatentUpsamplerModel, {"in_channels": 16, "mid_channels": 32} | change)
    with pytest.raises(SourceError, match=words):
        family.check(Path("latent_upsampler"), config, 16)
