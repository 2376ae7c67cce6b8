"""`telecine upscale`, and `telecine generate` in two stages, from the shell's side."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

import telecine
from telecine.cli import main
from telecine.pipeline import Pipeline
from telecine.video import read_video, save_video

LATENTS = np.random.default_rng(0).standard_normal((1, 16, 2, 1, 2), dtype=np.float32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.random.default_rng(1).integers(0, 256, (9, 32, 64, 3), dtype=np.uint8)
    save_video(frames, tmp_path / "in.gif", frame_rate=10)
    return tmp_path / "in.gif"


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    save_file({"latents": LATENTS}, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def test_a_video_becomes_twice_as_large(upscaler_bundle: Path, clip: Path, tmp_path: Path) -> None:
    result = run("upscale", upscaler_bundle, clip, "-o", tmp_path / "out.mp4", "--seed", 7)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out.mp4'}\n"), result.stderr
    assert "seed 7; load" in result.stderr
    frames, rate = read_video(tmp_path / "out.mp4")
    assert (frames.shape, rate) == ((9, 64, 128, 3), 10)


def test_latents_become_latents(upscaler_bundle: Path, latents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run(
        "upscale", upscaler_bundle, latents, "-o", out, "--output-type", "latent", "--adain-factor", 1, "--json"
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["files"] == [str(out)]
    assert set(report["seconds"]) == {"load", "upsample", "total"}
    with telecine.load(upscaler_bundle) as pipe:
        expected = pipe.upscale(latents=LATENTS, adain_factor=1.0, output_type="latent").latents
    np.testing.assert_array_equal(load_file(out)["latents"], expected)


def test_every_parameter_of_upscale_has_an_option() -> None:
    names = {parameter.name for parameter in main.commands["upscale"].params}
    assert set(inspect.signature(Pipeline.upscale).parameters) - {"self", "video", "latents"} <= names


def test_options_arrive(upscaler_bundle: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        Pipeline, "stream_upscaled", lambda self, **given: seen.update(given) or pytest.fail("far enough")
    )
    options = {
        "height": 32, "width": 64, "frame_rate": 12.5, "adain_factor": 0.5, "tone_map_compression_ratio": 0.25,
        "decode_timestep": 0.5, "decode_noise_scale": 0.25, "seed": 3, "tiling": "seamless", "tile_size": 256,
        "tile_stride": 64, "tile_frames": 72, "tile_frame_stride": 16, "memory_limit": "8GiB",
    }  # fmt: skip
    arguments = [item for name, value in options.items() for item in (f"--{name.replace('_', '-')}", value)]
    with pytest.raises(pytest.fail.Exception):
        CliRunner().invoke(
            main,
            [*map(str, ["upscale", upscaler_bundle, latents, "-o", tmp_path / "o.mp4", *arguments])],
            catch_exceptions=False,
        )
    assert {name: seen[name] for name in options} == options
    np.testing.assert_array_equal(seen["latents"], LATENTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mp4", "-o", "OUT/o.mp4"], "no file nowhere.mp4"),
        (["nowhere.safetensors", "-o", "OUT/o.mp4"], "nowhere.safetensors cannot be read"),
        (["CLIP", "-o", "OUT/o.xyz"], "o.xyz"),
        (["CLIP", "-o", "OUT/o.mp4", "--output-type", "latent"], "latents into"),
        (["CLIP", "-o", "OUT/o.mp4", "--height", "40"], "height is 40; expected a positive multiple of 32"),
        (["CLIP", "-o", "OUT/o.mp4", "--adain-factor", "-1"], "adain_factor is -1.0"),
        (["LATENTS", "-o", "OUT/o.mp4", "--width", "32"], "width is 32; expected 64, which the latents have"),
    ],
)
def test_wrong_requests_are_explained(
    arguments: list[str], words: str, upscaler_bundle: Path, clip: Path, latents: Path, tmp_path: Path
) -> None:
    places = {"CLIP": str(clip), "LATENTS": str(latents)}
    filled = [places.get(argument, argument.replace("OUT", str(tmp_path))) for argument in arguments]
    result = run("upscale", upscaler_bundle, *filled)
    assert result.exit_code == 1
    assert words in result.stderr
    assert not (tmp_path / "o.mp4").exists()


def test_generate_takes_second_stage_settings(
    upscaler_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def stream(self: Pipeline, **given: Any) -> None:
        seen.update(given)
        raise telecine.RequestError("far", expected="enough", fix="Stop.")

    monkeypatch.setattr(Pipeline, "stream", stream)
    settings = ["denoise_strength=0.999", "timesteps=909,725.5", "num-inference-steps=4", "timesteps=5"]
    command = ["generate", upscaler_bundle, "--prompt", "a", "-o", tmp_path / "o.mp4", "--preset", "two-stage"]
    run(*command)
    assert (seen["second_stage"], seen["preset"]) == (None, "two-stage")
    run(*command, *[item for setting in settings[:3] for item in ("--second-stage", setting)])
    assert seen["second_stage"] == {"denoise_strength": 0.999, "timesteps": [909, 725.5], "num_inference_steps": 4}
    run(*command, "--second-stage", settings[3])
    assert seen["second_stage"] == {"timesteps": [5]}
    assert run(*command, "--second-stage", "denoise").exit_code == 2
