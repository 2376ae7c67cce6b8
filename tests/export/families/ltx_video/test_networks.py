"""What export reads off an LTX-Video checkpoint's configuration, with diffusers' own models as the oracle."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed

from telecine.errors import SourceError
from telecine.families import FAMILIES
from telecine.families.ltx_video.guidance import request_guidance
from telecine.request import Request
from telecine.schedulers.flow_match_euler import pipeline_sigmas
from telecine_export.families.defaults import complete
from telecine_export.families.ltx_video import networks
from telecine_export.family import family_of
from telecine_export.source import Source, open_source

# The configurations that diffusers' conversion script writes, where they differ from the class's defaults.
VAE_091 = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
VAE_095 = VAE_091 | {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
RUNTIME_DEFAULTS = FAMILIES["ltx-video"].pipelines["LTXPipeline"].defaults
TRANSFORMER_13B = {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}


@pytest.fixture
def configured(tmp_path: Path, tiny_source: Path) -> Callable[..., Source]:
    """A source of the given VAE and transformer configurations: no weights, for what reads none."""

    def make(vae: dict[str, Any], transformer: dict[str, Any] | None = None) -> Source:
        for name, config in {"vae": vae, "transformer": transformer or {}}.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        shutil.copytree(tiny_source / "text_encoder", tmp_path / "text_encoder")
        return Source(root=tmp_path, pipeline_class="LTXPipeline")

    return make


@pytest.mark.parametrize(
    ("vae", "transformer", "expected"),
    [
        ({}, {}, "0.9.0"),
        (VAE_091, {}, "0.9.1"),
        (VAE_095, {}, "0.9.5"),
        (VAE_095, TRANSFORMER_13B, "0.9.7"),
    ],
)
def test_variants_are_told_from_the_configuration(
    vae: dict, transformer: dict, expected: str, configured: Callable[..., Source]
) -> None:
    source = configured(vae, transformer)
    assert networks.variant(source) == expected
    preset = networks.presets(source)["recommended"]
    assert preset["width"] % 32 == preset["height"] % 32 == 0
    assert preset["num_frames"] % 8 == 1
    assert ("decode_timestep" in preset) == bool(vae)


@pytest.mark.parametrize(("transformer", "blocks"), [({}, 28), (TRANSFORMER_13B, 48)], ids=["2B", "13B"])
@pytest.mark.parametrize("vae", [{}, VAE_095], ids=["0.9.0", "0.9.5"])
def test_the_official_preset_is_a_request_that_the_model_takes(
    vae: dict, transformer: dict, blocks: int, configured: Callable[..., Source]
) -> None:
    presets = networks.presets(configured(vae, transformer))
    preset = json.loads(json.dumps(presets["official"]))  # as a manifest holds it
    assert ("decode_timestep" in preset) == bool(vae)
    request = Request.resolve({"prompt": "a fox"}, preset, RUNTIME_DEFAULTS)
    host: Any = SimpleNamespace(transformer_blocks=blocks)
    steps = request_guidance(request, pipeline_sigmas(request.num_inference_steps).astype(np.float32), host).steps
    assert any(step.stg_scale > 0 for step in steps)
    assert request.width % 32 == request.height % 32 == 0
    assert request.num_frames % 8 == 1


def test_the_official_schedule_of_13b(configured: Callable[..., Source]) -> None:
    preset = networks.presets(configured(VAE_095, TRANSFORMER_13B))["official"]
    sigmas = np.array([1, 0.999, 0.996, 0.995, 0.99, 0.98, 0.95, 0.7, 0.1], np.float32)
    host: Any = SimpleNamespace(transformer_blocks=48)
    steps = request_guidance(Request.resolve({"prompt": "a"}, preset, RUNTIME_DEFAULTS), sigmas, host).steps
    assert [step.scale for step in steps] == [1, 1, 1, 6, 8, 6, 1, 1, 1]
    assert [step.stg_scale for step in steps] == [0, 0, 0, 4, 4, 4, 2, 1, 1]
    assert [step.rescale for step in steps] == [0, 0, 0, 0.5, 0.5, 0, 0, 0, 0]
    late = [(28,)] * 4
    assert [step.stg_blocks for step in steps] == [(), *[(11, 25, 35, 39)] * 2, (22, 35, 39), (28,), *late]
    assert all(step.cfg_star for step in steps)


def test_blocks_of_published_models_are_no_preset_of_others(configured: Callable[..., Source]) -> None:
    assert set(networks.presets(configured({}, {"num_layers": 12}))) == {"recommended"}


def test_real_configurations_give_the_contracts(configured: Callable[..., Source]) -> None:
    specs = {spec.component: spec for spec in networks.graphs(configured(VAE_095, TRANSFORMER_13B))}
    assert specs["transformer"].output_shape == ("batch", "tokens", 128)
    assert specs["transformer"].sample["rope_cos"].shape[2] == 4096 // 6
    assert specs["vae_encoder"].axes["video"] == {
        0: "batch", 2: "8*latent_frames-7", 3: "32*latent_height", 4: "32*latent_width",
    }  # fmt: skip
    assert set(specs["vae_decoder"].sample) == {"latents", "timestep"}


def test_a_decoder_without_a_timestep_has_no_such_input(configured: Callable[..., Source]) -> None:
    specs = {spec.component: spec for spec in networks.graphs(configured({}))}
    assert set(specs["vae_decoder"].sample) == {"latents"}


def test_injected_noise_is_an_input_a_level(configured: Callable[..., Source]) -> None:
    """What diffusers' own decoder of 0.9.1 draws, one map at a time: 36 of them."""
    source = configured(VAE_091)
    specs = {spec.component: spec for spec in networks.graphs(source)}
    spec = specs["vae_decoder"]
    assert {name: len(tensor) for name, tensor in spec.sample.items() if name.startswith("noise_")} == {
        "noise_2": 14, "noise_4": 12, "noise_8": 10,
    }  # fmt: skip
    assert spec.axes["noise_4"] == {1: "4*latent_height", 2: "4*latent_width"}
    with torch.device("meta"):
        vae: Any = AutoencoderKLLTXVideo(**VAE_091)
    drawn: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        randn = torch.randn
        patch.setattr(torch, "randn", lambda shape, **options: (drawn.append(tuple(shape)), randn(shape, **options))[1])
        vae.decoder(torch.empty(1, 128, 2, 3, 5, device="meta"), torch.empty(1, device="meta"))
    counts = networks.decoder_noise(complete(AutoencoderKLLTXVideo, VAE_091))
    assert drawn == [(3 * scale, 5 * scale) for scale, maps in counts.items() for _ in range(maps)]


def test_noise_at_a_level_without_an_input_is_refused() -> None:
    config = VAE_091 | {"decoder_block_out_channels": [8, 16, 32, 64], "decoder_layers_per_block": [1] * 5}
    config |= {"decoder_spatio_temporal_scaling": [True] * 4, "upsample_residual": [True] * 4}
    config |= {"upsample_factor": [2] * 4, "decoder_inject_noise": [True] * 5, "patch_size": 2}
    with pytest.raises(SourceError, match="injects noise at 1, 2, 4, 8, 16 values per latent"):
        networks.decoder_noise(complete(AutoencoderKLLTXVideo, config))


@pytest.mark.parametrize("config", [{}, VAE_091, VAE_095], ids=["0.9.0", "0.9.1", "0.9.5"])
def test_the_widest_activations_of_real_vaes(config: dict) -> None:
    """128 channels at a quarter of the picture's side, in both halves; before an upsampler drops it, one frame more."""
    widest = networks.widest_activations(complete(AutoencoderKLLTXVideo, config))
    assert widest == pytest.approx({"vae_encoder": 128 / 16, "vae_decoder": 128 / 16}, rel=2 / 65)


def test_patches_larger_than_one_are_refused(configured: Callable[..., Source]) -> None:
    with pytest.raises(SourceError, match="patch_size 2"):
        networks.graphs(configured({}, {"patch_size": 2}))


@pytest.mark.parametrize("config", [{}, VAE_091, VAE_095], ids=["0.9.0", "0.9.1", "0.9.5"])
def test_compression_ratios(config: dict) -> None:
    with torch.device("meta"):
        vae: Any = AutoencoderKLLTXVideo(**config)
    expected = (vae.temporal_compression_ratio, vae.spatial_compression_ratio)
    assert networks.compression_ratios(vae.config) == expected == (8, 32)


@pytest.mark.parametrize("width", [64, 2048, 4096])
def test_rope_frequencies_are_torchs(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At position 1, diffusers' angle is the frequency itself: read it there, before the cosine."""
    config = {"num_attention_heads": width // 16, "attention_head_dim": 16}
    angles: list[torch.Tensor] = []
    cos = torch.Tensor.cos
    monkeypatch.setattr(torch.Tensor, "cos", lambda tensor: (angles.append(tensor), cos(tensor))[1])
    # 2 p - 1 = 1 on every axis, so that the three interleaved columns are equal.
    LTXVideoRotaryPosEmbed(dim=width)(
        torch.zeros(1, 1, width), video_coords=torch.tensor([[[20.0], [2048.0], [2048.0]]])
    )
    assert torch.equal(angles[0][0, 0, ::3], networks.rope_frequencies(config))
    assert math.isclose(float(angles[0].max()), 10000 * math.pi / 2, rel_tol=1e-6)


def test_other_pipelines_are_refused(tiny_source: Path) -> None:
    source = Source(root=tiny_source, pipeline_class="WanPipeline")
    with pytest.raises(SourceError, match="is a WanPipeline; expected one of LTXPipeline"):
        family_of(source)
    assert family_of(open_source(str(tiny_source))).name == "ltx-video"
