"""The tiny CogVideoX checkpoints: each style's pipeline loads, and the same arguments give the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, DiffusionPipeline
from make_tiny_cogvideox import STYLES, make_tiny_cogvideox, tiny_cogvideox_transformer, tiny_cogvideox_vae
from safetensors.torch import load_file


@pytest.mark.parametrize("style", STYLES)
def test_each_styles_pipeline_loads(cogvideox: Callable[..., tuple[Path, Path]], style: str) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(cogvideox(style)[0])
    assert type(pipeline).__name__ == ("CogVideoXImageToVideoPipeline" if "I2V" in style else "CogVideoXPipeline")
    assert pipeline.transformer.config.attention_head_dim >= 16  # TensorRT fuses no smaller attention
    assert pipeline.scheduler.alphas_cumprod[-1] == 0


def test_the_same_seed_gives_the_same_weights() -> None:
    for make in (tiny_cogvideox_transformer, tiny_cogvideox_vae):
        one, same, other = (make(seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_scheduler_and_the_type_are_as_asked(tmp_path: Path) -> None:
    out = make_tiny_cogvideox(tmp_path / "tiny", scheduler="dpm", dtype="bfloat16", num_layers=1)
    pipeline: Any = DiffusionPipeline.from_pretrained(out)
    assert isinstance(pipeline.scheduler, CogVideoXDPMScheduler)
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not any("transformer_blocks.1." in name for name in weights)
