"""`telecine export` and `telecine verify` of LTX-2, on the command line: every stage, and a fault in one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from telecine.bundle import Bundle
from telecine.cli import main

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
STAGES = [
    "tokenizer", "text_encoder", "connectors", "transformer", "vae_encoder", "vae_decoder", "audio_vae_decoder",
    "vocoder", "latent_upsampler", "uint8_frames", "prompt_embeds", "start", "schedule", "latents", "sound_latents",
    "decode_input", "audio", "frames",
]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize("style", ["2.3", pytest.param("2.0", marks=pytest.mark.slow)])
def test_every_stage_is_torchs(ltx2: Ltx2, style: str) -> None:
    source, upscaler, bundle = ltx2(style)
    result = run("verify", bundle, source, "--upscaler", upscaler, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [stage["name"] for stage in told["stages"]] == STAGES
    assert told["first_divergence"] is None


def test_a_fault_is_found_where_it_is(ltx2: Ltx2, tmp_path: Path) -> None:
    source, upscaler, bundle = ltx2("2.3")
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = copy / Bundle.open(copy).component("vocoder").weights.path
    values = np.fromfile(weights, np.float32)
    (values * np.float32(1.01)).tofile(weights)
    stages = [each for name in ("connectors", "vocoder", "audio", "frames") for each in ("--stage", name)]
    result = run("verify", copy, source, "--upscaler", upscaler, *stages, "--json")
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)
    assert told["first_divergence"] == "vocoder"
    assert [stage["name"] for stage in told["stages"] if not stage["passed"]] == ["vocoder", "audio"]


@pytest.mark.slow
def test_it_is_exported_from_the_command_line(ltx2_sources: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source, upscaler = ltx2_sources("2.0")
    result = run("export", source, tmp_path / "bundle", "--upscaler", upscaler)
    assert result.exit_code == 0, result.output
    assert "ltx-2 2.0, LTX2Pipeline" in result.stderr
    assert "vocoder:" in result.stderr
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.presets["recommended"]["use_cross_timestep"] is False
    assert manifest.presets["two-stage-distilled"]["second_stage"] == {}


def test_an_upscaler_of_another_family_is_refused(
    ltx2_sources: Callable[[str], tuple[Path, Path]], tiny_source: Path, tiny_upscaler: Path, tmp_path: Path
) -> None:
    source, upscaler = ltx2_sources("2.3")
    for model, other in ((source, tiny_upscaler), (tiny_source, upscaler)):
        result = run("export", model, tmp_path / "bundle", "--upscaler", other)
        assert result.exit_code == 1
        assert "LatentUpsamplePipeline" in str(result.exception) + result.output
    result = run("export", source, tmp_path / "bundle", "--upscaler", tiny_upscaler / "latent_upsampler")
    assert "LTXLatentUpsamplerModel" in str(result.exception) + result.output
