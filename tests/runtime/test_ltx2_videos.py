"""LTX-2 from the command line to files with sound, and what of it is refused."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

import telecine
from telecine import Condition
from telecine.cli import main
from telecine.errors import RequestError

av = pytest.importorskip("av")

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
SMALL = ["--height", "64", "--width", "96", "--num-frames", "9", "--num-inference-steps", "2", "--seed", "3"]
TEXT = ["--prompt", "a red ball", "--max-sequence-length", "16", "--spatio-temporal-guidance-blocks", "1"]
ASKED: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 3,
    "max_sequence_length": 16, "spatio_temporal_guidance_blocks": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(ltx2: Ltx2) -> Path:
    return ltx2("2.3")[2]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def test_a_file_has_both_streams_in_sync(bundle: Path, tmp_path: Path) -> None:
    """Both begin together, and end within a frame of each other (and of a packet, which an encoder fills up)."""
    told = run(
        "generate", bundle, *TEXT, *SMALL, "--num-frames", "25", "--frame-rate", "24", "-o", tmp_path / "out.mp4"
    )
    assert told.stdout.strip() == str(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [each.time for each in container.decode(container.streams.video[0])]
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        heard = [(each.time, each.samples, each.to_ndarray()) for each in container.decode(stream)]
        rate, channels = stream.rate, stream.channels
    frame = 1 / 24
    assert len(times) == 25
    assert (rate, channels) == (48000, 2)
    assert abs(times[0] - heard[0][0]) <= frame
    end, last = times[-1] + frame, heard[-1][0] + heard[-1][1] / rate
    assert abs(end - last) <= frame + 1024 / rate
    assert np.concatenate([each for _, _, each in heard], axis=1).std() > 0.02


def test_latents_go_out_and_come_back_with_the_sounds(bundle: Path, tmp_path: Path) -> None:
    run("generate", bundle, *TEXT, *SMALL, "--output-type", "latent", "-o", tmp_path / "one.safetensors")
    made = load_file(tmp_path / "one.safetensors")
    assert {name: each.shape for name, each in made.items()} == {
        "latents": (1, 16, 2, 2, 3),
        "audio_latents": (1, 2, 9, 4),
    }
    plain = ["--guidance-scale", "1", "--audio-guidance-scale", "1", "--stg-scale", "0", "--audio-stg-scale", "0",
             "--modality-scale", "1", "--audio-modality-scale", "1"]  # fmt: skip
    again = ["--latents", tmp_path / "one.safetensors", "--sigmas", "0.4", "--noise-scale", "0.4"]
    told = run("generate", bundle, *TEXT, *SMALL, *plain, *again, "--json", "-o", tmp_path / "two.gif")
    assert json.loads(told.stdout)["files"] == [str(tmp_path / "two.gif")]


def test_sound_as_an_array_and_a_wav_file(bundle: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    with telecine.load(bundle) as pipe:
        result = pipe.generate(**ASKED, callback=lambda step, steps, sigma, latents: seen.append(latents))
        with pipe.stream(**ASKED) as stream:
            np.testing.assert_array_equal(stream.whole(), result.frames)
            np.testing.assert_array_equal(stream.audio, result.audio)
    assert [type(each).__name__ for each in seen] == ["AudioVideo"] * 2
    assert result.audio is not None
    assert result.audio.shape == (1, 2, 33 * 480)
    (path,) = result.save_audio(tmp_path / "out.wav")
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 48000, 33 * 480)
    assert set(result.timings) >= {"text", "denoise", "network", "sound", "decode"}
    assert result.memory.predicted is not None


def test_a_repeated_prompt_is_not_encoded_again(bundle: Path) -> None:
    with telecine.load(bundle) as pipe:
        first = pipe.generate(**ASKED, output_type="latent")
        kept = pipe._models.prompts.bytes
        again = pipe.generate(**ASKED, output_type="latent")
        assert pipe._models.prompts.bytes == kept > 0
    np.testing.assert_array_equal(first.latents, again.latents)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"stg_blocks": [1]}, "stg_blocks for a ltx-2 model.*Pass spatio_temporal_guidance_blocks"),
        ({"max_sequence_length": 20}, "a text length of 20.*a multiple of 16"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "conditions": []}, "conditions for LTX2"),
        ({"conditions": [Condition(image=np.zeros((8, 8, 3), np.uint8), frame_index=3)]}, "a condition at frame 3"),
        ({"timesteps": [900.0], "sigmas": [0.9]}, "sigmas and timesteps"),
        ({"spatio_temporal_guidance_blocks": [2]}, "spatio_temporal_guidance_blocks has 2"),
        ({"second_stage": {"denoise_strength": 0.4}}, "second_stage has denoise_strength"),
        ({"second_stage": {}, "latents": np.zeros((1, 16, 2, 2, 3), np.float32)}, "latents with two stages"),
        ({"memory_limit": "20MiB"}, "memory_limit is 20MiB"),
        ({"audio_latents": np.zeros((1, 2, 8, 4), np.float32)}, "audio_latents have shape"),
    ],
)  # fmt: skip
def test_refusals(bundle: Path, asked: dict[str, Any], words: str) -> None:
    with telecine.load(bundle) as pipe, pytest.raises(RequestError, match=f"(?s){words}"):
        pipe.generate(**ASKED | asked)


def test_a_video_is_not_upscaled(bundle: Path) -> None:
    with telecine.load(bundle) as pipe, pytest.raises(RequestError, match="a video to upscale with LTX-2"):
        pipe.upscale(np.zeros((9, 64, 96, 3), np.uint8))


@pytest.mark.parametrize("family", ["tiny_bundle", "plain_bundle"])
def test_models_without_sound_refuse_what_is_its(family: str, request: pytest.FixtureRequest) -> None:
    with telecine.load(request.getfixturevalue(family)) as pipe:
        for name, value in {"audio_guidance_scale": 2.0, "motion_speed": 0.5, "sigmas": [0.5]}.items():
            with pytest.raises(RequestError, match=f"{name} for a ltx-video model"):
                pipe.generate("a red ball", **{name: value})


def test_a_limit_drops_networks_and_changes_nothing(bundle: Path) -> None:
    with telecine.load(bundle) as pipe:
        free = pipe.generate(**ASKED)
    with telecine.load(bundle) as pipe:
        with pytest.raises(RequestError) as refused:
            pipe.generate(**ASKED, memory_limit="1MiB")
        least = refused.value.expected.split()[2]
        limited = pipe.generate(**ASKED, memory_limit=least)
    np.testing.assert_array_equal(free.frames, limited.frames)
    np.testing.assert_array_equal(free.audio, limited.audio)


def test_presets_tell_the_steps(bundle: Path) -> None:
    small = {"prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "max_sequence_length": 16, "seed": 3}
    steps: list[int] = []
    with telecine.load(bundle) as pipe:
        for preset, sides in (("distilled", {}), ("two-stage-distilled", {"height": 100, "width": 150})):
            made = pipe.generate(
                **small | sides, preset=preset, callback=lambda step, count, sigma, latents: steps.append(count)
            )
    assert steps == [8] * 8 + [8] * 8 + [3] * 3
    assert made.frames is not None
    assert made.frames.shape == (1, 9, 100, 150, 3)
    assert made.audio is not None
    assert {"first denoise", "upsample", "second denoise", "second sound"} <= set(made.timings)


def test_it_is_inspected(bundle: Path) -> None:
    told = run("inspect", bundle).stdout
    for word in ("ltx-2 2.3", "connectors", "audio_vae_decoder", "vocoder", "latent_upsampler", "two-stage-distilled"):
        assert word in told
