"""The tiny checkpoint: loadable, reproducible, and moved by everything that a parity test must notice."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXLatentUpsamplePipeline, LTXPipeline
from safetensors import safe_open

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tiny_checkpoint.py"
WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_tiny_checkpoint = _load_script().make_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "ltx")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    pipeline = LTXPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(pipeline: Any, **changes: Any) -> np.ndarray:
    """(17, 64, 96, 3) frames in [0, 1] of one request, but for `changes`."""
    request: dict[str, Any] = {
        "prompt": "A red ball rolls to the left",
        "negative_prompt": "worst quality, blurry",
        "height": 64,
        "width": 96,
        "num_frames": 17,
        "frame_rate": 25,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
        "generator": torch.Generator("cpu").manual_seed(0),
        "output_type": "np",
    }
    return pipeline(**(request | changes)).frames[0]


@pytest.fixture(scope="module")
def frames(pipeline: Any) -> np.ndarray:
    return _generate(pipeline)


def _move(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


def test_ratios_are_the_real_ones(pipeline: Any) -> None:
    assert pipeline.vae.spatial_compression_ratio == 32
    assert pipeline.vae.temporal_compression_ratio == 8
    assert pipeline.vae.config.timestep_conditioning
    moments = pipeline.vae.encoder(torch.zeros(1, 3, 9, 64, 96))
    latents = torch.zeros(1, pipeline.transformer.config.in_channels, 2, 2, 3)
    assert moments.shape == (1, 32, 2, 2, 3)  # means, and one log variance repeated
    assert pipeline.vae.decode(latents, torch.tensor([0.05])).sample.shape == (1, 3, 9, 64, 96)
    assert 64 % 6 == 4  # the rotary tables of a 64 wide transformer are padded
    assert pipeline.transformer.config.num_attention_heads * pipeline.transformer.config.attention_head_dim == 64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frames_are_neither_grey_nor_clipped(tmp_path: Path, seed: int) -> None:
    pipeline = LTXPipeline.from_pretrained(make_tiny_checkpoint(tmp_path / "ltx", seed=seed))
    pipeline.set_progress_bar_config(disable=True)
    frames = _generate(pipeline)
    assert frames.shape == (17, 64, 96, 3)
    assert frames.std() > 0.1
    assert frames.std(axis=0).mean() > 0.05  # the clip moves, too
    assert ((frames <= 0) | (frames >= 1)).mean() < 0.05


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"prompt": "A blue ball rolls to the left"}, 5e-2),
        ({"negative_prompt": ""}, 5e-2),
        ({"guidance_scale": 3.05}, 5e-3),
        ({"guidance_rescale": 0.1}, 5e-3),
        ({"frame_rate": 24}, 1e-2),
        ({"num_inference_steps": 5}, 5e-2),
        ({"max_sequence_length": 64}, 5e-2),
        ({"decode_timestep": 0.06}, 5e-2),
        ({"decode_noise_scale": 0.03}, 2e-3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_small_change_of_the_request_moves_the_frames(
    pipeline: Any, frames: np.ndarray, change: dict[str, Any], least: float
) -> None:
    assert _move(_generate(pipeline, **change), frames) > least


def test_text_mask_moves_the_frames(pipeline: Any, frames: np.ndarray) -> None:
    embeds, mask, negative_embeds, negative_mask = pipeline.encode_prompt(
        "A red ball rolls to the left", "worst quality, blurry"
    )

    def generate(mask: torch.Tensor, negative_mask: torch.Tensor) -> np.ndarray:
        return _generate(
            pipeline,
            prompt=None,
            negative_prompt=None,
            prompt_embeds=embeds,
            prompt_attention_mask=mask,
            negative_prompt_embeds=negative_embeds,
            negative_prompt_attention_mask=negative_mask,
        )

    assert _move(generate(mask, negative_mask), frames) < 1e-4
    assert _move(generate(mask, torch.ones_like(negative_mask)), frames) > 5e-2
    assert _move(generate(torch.ones_like(mask), negative_mask), frames) > 5e-2


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("attn1.to_out", 0),
        ("attn2.to_out", 0),
        ("ff.net.2", 0),
        ("scale_shift_table", 0),
        ("time_embed", 0),
        ("caption_projection", 0),
        ("attn1.to_q", 0),
        ("attn2.to_q", 0),
        ("norm_q", 1),
        ("norm_k", 1),
    ],
)
def test_every_part_of_the_transformer_matters(pipeline: Any, frames: np.ndarray, part: str, value: int) -> None:
    parameters = [p for name, p in pipeline.transformer.named_parameters() if part in name]
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(value)
        changed = _generate(pipeline)
        for parameter, weights in zip(parameters, kept, strict=True):
            parameter.copy_(weights)
    assert parameters
    assert _move(changed, frames) > 5e-2


def test_rounding_errors_stay_small(pipeline: Any) -> None:
    """A model that amplified errors would make a parity bound of 2e-3 unreachable."""
    generator = torch.Generator("cpu").manual_seed(5)
    latents = torch.randn(1, 18, 16, generator=generator)
    noise = 1e-5 * torch.randn(1, 18, 16, generator=generator)
    assert _move(_generate(pipeline, latents=latents), _generate(pipeline, latents=latents + noise)) < 2e-4


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_same_seed_gives_the_same_bytes_in_another_process(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)], check=True, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == f"{out}\n"
    digests = _digests(checkpoint)
    assert digests == _digests(out)
    assert {*WEIGHTS, "tokenizer/spiece.model", "tokenizer/tokenizer.json"} <= digests.keys()
    assert sum(path.stat().st_size for path in out.rglob("*")) < 4_000_000


def test_another_seed_gives_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    other = _digests(make_tiny_checkpoint(tmp_path / "ltx", seed=1))
    digests = _digests(checkpoint)
    assert all(digests[name] != other[name] for name in WEIGHTS)
    assert digests["tokenizer/tokenizer.json"] == other["tokenizer/tokenizer.json"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_stored_in_the_dtype(tmp_path: Path, dtype: str) -> None:
    out = make_tiny_checkpoint(tmp_path / "ltx", dtype=dtype, layers=1)
    for name in WEIGHTS:
        with safe_open(out / name, framework="pt") as weights:
            dtypes = {weights.get_tensor(key).dtype for key in weights.keys()}  # noqa: SIM118 - not a dict
        assert dtypes == {getattr(torch, dtype)}
    pipeline = LTXPipeline.from_pretrained(out, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    assert np.isfinite(_generate(pipeline)).all()


def test_without_timestep_conditioning(tmp_path: Path) -> None:
    pipeline = LTXPipeline.from_pretrained(make_tiny_checkpoint(tmp_path / "ltx", timestep_conditioning=False))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae.decoder.time_embedder is None
    frames = _generate(pipeline)
    assert frames.std() > 0.05
    assert ((frames <= 0) | (frames >= 1)).mean() < 0.1


def test_overrides_reach_the_configurations(tmp_path: Path) -> None:
    scheduler = {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None}
    out = make_tiny_checkpoint(tmp_path / "ltx", scheduler=scheduler, layers=1)
    config = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert {key: config[key] for key in scheduler} == scheduler
    assert config["base_image_seq_len"] == 1024
    assert json.loads((out / "transformer" / "config.json").read_text())["num_layers"] == 1


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        make_tiny_checkpoint(tmp_path / "ltx", dtype="float64")


def test_an_upscaler_for_it(checkpoint: Path, tmp_path: Path) -> None:
    _load_script().make_tiny_upscaler(tmp_path / "upscaler")
    pipeline = LTXLatentUpsamplePipeline.from_pretrained(tmp_path / "upscaler")
    assert _digests(checkpoint)["vae/diffusion_pytorch_model.safetensors"] in _digests(tmp_path / "upscaler").values()
    latents = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    made = pipeline(latents=latents, output_type="latent").frames
    assert made.shape == (1, 16, 2, 6, 8)
    assert made.std() > 0.2
    assert _move(made.numpy(), pipeline(latents=latents.flip(2), output_type="latent").frames.numpy()) > 0.1
