"""The tiny LTX-2 checkpoints: each pipeline loads them, and the same arguments give the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2ConditionPipeline, LTX2ImageToVideoPipeline, LTX2LatentUpsamplePipeline, LTX2Pipeline
from make_tiny_ltx2 import STYLES, make_tiny_ltx2, make_tiny_ltx2_upscaler, tiny_ltx2_transformer, tiny_vocoder
from safetensors.torch import load_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("style", STYLES)
def test_each_styles_pipelines_load(style: str, tmp_path: Path) -> None:
    out = make_tiny_ltx2(tmp_path / "tiny", style=style, dtype="bfloat16", transformer={"num_layers": 1})
    for kind in (LTX2Pipeline, LTX2ImageToVideoPipeline, LTX2ConditionPipeline):
        pipeline: Any = kind.from_pretrained(out)
        assert pipeline.vae_spatial_compression_ratio == 32
    assert len(pipeline.transformer.transformer_blocks) == 1
    assert pipeline.transformer.config.perturbed_attn == (style == "2.3")
    assert load_file(out / "connectors" / WEIGHTS)["video_connector.learnable_registers"].dtype == torch.bfloat16
    ids = pipeline.tokenizer(["two  dogs\n\n日", "a"], padding="max_length", max_length=32).input_ids
    assert ids[1][:-2] == [pipeline.tokenizer.pad_token_id] * 30  # in front, before <bos>
    assert pipeline.tokenizer.bos_token_id in ids[0]


@pytest.mark.parametrize("style", STYLES)
def test_its_upscaler_loads(style: str, tmp_path: Path) -> None:
    pipeline: Any = LTX2LatentUpsamplePipeline.from_pretrained(make_tiny_ltx2_upscaler(tmp_path / "up", style=style))
    assert pipeline.latent_upsampler.config.use_rational_resampler == (style == "2.0")


def test_the_same_seed_gives_the_same_weights() -> None:
    for make in (tiny_ltx2_transformer, tiny_vocoder):
        one, same, other = (make(style="2.3", seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)
