"""`telecine generate` from the shell's side: files, streams, exit codes, and what is refused before any work."""

from __future__ import annotations

import errno
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file, save_file

import telecine
from telecine.cli import main
from telecine.cli.generate import generate as command
from telecine.pipeline import Pipeline
from telecine.tiling.options import show_size
from telecine.video import read_video

SMALL = ["--height", "64", "--width", "32", "--num-frames", "9", "--num-inference-steps", "2"]

Run = Callable[..., Result]


@pytest.fixture
def run(tiny_bundle: Path) -> Run:
    def invoke(*arguments: object, prompt: bool = True) -> Result:
        text = ["--prompt", "a red ball"] if prompt else []
        return CliRunner().invoke(main, ["generate", str(tiny_bundle), *text, *SMALL, *map(str, arguments)])

    return invoke


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        pytest.fail("the bundle was loaded before the request was refused")

    monkeypatch.setattr(telecine.pipeline, "load", load)


def test_a_video_and_its_seed(run: Run, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "clip.mp4", "--seed", 7, "--frame-rate", 24)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'clip.mp4'}\n")
    assert "seed 7; load" in result.stderr
    frames, rate = read_video(tmp_path / "clip.mp4")
    assert (frames.shape, rate) == ((9, 64, 32, 3), 24)


def test_cogvideox_changes_a_video(cogvideox: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    """Its size and frame rate are the model's own, its length the video's."""
    _, bundle = cogvideox("5b")
    made, changed = tmp_path / "made.mp4", tmp_path / "changed.mp4"
    common = ["generate", str(bundle), "--prompt", "a red ball", "--num-inference-steps", "2"]
    result = CliRunner().invoke(main, [*common, "-o", str(made), "--num-frames", "5", "--use-dynamic-cfg"])
    assert result.exit_code == 0, result.stderr
    assert [read_video(made)[0].shape, read_video(made)[1]] == [(8, 64, 96, 3), 8]
    result = CliRunner().invoke(main, [*common, "-o", str(changed), "--video", str(made), "--strength", "0.5"])
    assert result.exit_code == 0, result.stderr
    assert read_video(changed)[0].shape == (8, 64, 96, 3)
    result = CliRunner().invoke(main, [*common, "-o", str(made), "--frame-rate", "24"])
    assert (result.exit_code, "frame_rate for a cogvideox model" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("style", "options", "shape", "rate"),
    [
        ("2b", ["--num-frames", "9", "--height", "32", "--width", "48"], (9, 32, 48, 3), 8),
        pytest.param("5b", ["--use-dynamic-cfg", "--num-frames", "1", "--height", "32", "--width", "48"],
                     (1, 32, 48, 3), 8, marks=pytest.mark.slow),
        ("5b-I2V", ["--image", "PICTURE", "--num-frames", "9"], (9, 64, 96, 3), 8),
        pytest.param("1.5-5b", ["--num-frames", "13", "--height", "48", "--width", "32"], (16, 48, 32, 3), 16,
                     marks=pytest.mark.slow),
        pytest.param("1.5-5b-I2V", ["--image", "PICTURE", "--num-frames", "9", "--height", "32", "--width", "32"],
                     (9, 32, 32, 3), 16, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_cogvideox_generates(
    style: str, options: list[str], shape: tuple[int, ...], rate: float, cogvideox: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
) -> None:  # fmt: skip
    picture, clip = tmp_path / "picture.png", tmp_path / "clip.mp4"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
    options = [str(picture) if option == "PICTURE" else option for option in options]
    common = ["generate", str(cogvideox(style)[1]), "--prompt", "a red ball", "--num-inference-steps", "1"]
    result = CliRunner().invoke(main, [*common, *options, "-o", str(clip)])
    assert result.exit_code == 0, result.stderr
    frames, found = read_video(clip)
    assert (frames.shape, found) == (shape, rate)


def test_memory_is_told_before_and_after(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run("-o", tmp_path / "clip.gif", "--json", "--memory-limit", "1GiB")
    memory = json.loads(result.stdout)["memory"]
    assert memory["limit"] == 2**30 > memory["predicted"] > 50 * 2**20
    assert set(memory) == {"limit", "predicted", "measured", "device"}
    assert [each.getMessage() for each in caplog.records if each.name == "telecine.models"] == [
        f"this run is predicted to take at most {show_size(memory['predicted'])} of memory (of 1GiB)"
    ]
    told = run("-o", tmp_path / "clip.gif").stderr
    assert f"; memory {show_size(memory['predicted'])[:2]}" in told
    assert "predicted" in told


def test_json_has_files_seeds_and_seconds(run: Run, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "clip.gif", "--json")
    report = json.loads(result.stdout)
    assert report["files"] == [str(tmp_path / "clip.gif")]
    assert set(report["seconds"]) == {"load", "text", "denoise", "network", "decode", "total"}
    again = run("-o", tmp_path / "again.gif", "--seed", report["seeds"][0])
    assert again.exit_code == 0
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "clip.gif").read_bytes()


def test_a_batch_gets_numbered_files(run: Run, tmp_path: Path) -> None:
    result = run("--prompt", "a blue cube", "-o", tmp_path / "clip.mp4", "--seed", 1, "--seed", 2)
    assert result.stdout.split() == [str(tmp_path / "clip-0.mp4"), str(tmp_path / "clip-1.mp4")]


def test_latents_go_out_and_come_back(run: Run, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "latents.safetensors", "--output-type", "latent", "--seed", 0)
    assert result.exit_code == 0, result.stderr
    assert load_file(tmp_path / "latents.safetensors")["latents"].shape == (1, 4, 16)
    result = run("-o", tmp_path / "clip.gif", "--latents", tmp_path / "latents.safetensors")
    assert result.exit_code == 0, result.stderr


def test_embeddings_instead_of_text(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    embeds = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
    save_file({"prompt_embeds": embeds, "prompt_attention_mask": np.ones((1, 5), np.float32)}, file)
    result = run("-o", tmp_path / "clip.gif", "--prompt-embeds", file, prompt=False)
    assert result.exit_code == 0, result.stderr


def test_every_parameter_of_generate_has_an_option() -> None:
    parameters = set(inspect.signature(Pipeline.generate).parameters) - {"self", "callback"}
    in_the_embeds_file = {"prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"}
    in_the_latents_file = {"audio_latents"}
    by_image_and_video = {"image", "video", "conditions"}
    names = {option.name for option in command.params}
    assert parameters - in_the_embeds_file - in_the_latents_file - by_image_and_video <= names
    assert {"images", "videos"} <= names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "clip.avi"], "expected one of .mp4, .webm, .gif, .png"),
        (["-o", "clip"], "has no suffix"),
        (["-o", "/dev/null/clip.mp4"], "cannot be written"),
        (["-o", "clip.gif", "--quality", "20"], "this format has none"),
        (["-o", "clip.gif", "--file-frame-rate", "60"], "0.01 to 50 frames a second"),
        (["-o", "clip.mp4", "--output-type", "latent"], "expected a .safetensors file"),
        (["-o", "clip.mp4", "--latents", "none.safetensors"], "none.safetensors cannot be read"),
        (["-o", "clip.gif", "--frame-rate", "60"], "0.01 to 50 frames a second"),
        (["-o", "%05d.png", "--num-videos-per-prompt", "2"], "expected a name that takes numbers"),
    ],
)
def test_refused_before_anything_is_loaded(
    arguments: list[str], words: str, run: Run, never_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_a_batch_is_checked_first(run: Run, never_loads: None, tmp_path: Path) -> None:
    (tmp_path / "clip-1.mp4").mkdir()
    for more in (["--prompt", "b"], ["--num-videos-per-prompt", 2]):
        result = run("-o", tmp_path / "clip.mp4", *more)
        assert (result.exit_code, "clip-1.mp4 is a folder" in result.stderr) == (1, True)


def test_a_missing_encoder_is_told_first(
    run: Run, never_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("-o", tmp_path / "clip.mp4")
    assert (result.exit_code, 'pip install "telecine[video]"' in result.stderr) == (1, True)


def test_bfloat16_files_are_explained(tiny_bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: where a test has imported ml_dtypes, NumPy knows bfloat16 and the file is read."""
    header = json.dumps({"latents": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "half.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    script = Path(sys.executable).with_name("telecine")
    arguments = ["--prompt", "a", "-o", tmp_path / "clip.mp4", "--latents", tmp_path / "half.safetensors"]
    done = subprocess.run([script, "generate", tiny_bundle, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, "save the arrays as float32" in done.stderr) == (1, True), done.stderr


def test_options_arrive_as_they_were_given(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def stream(_: Pipeline, **parameters: object) -> None:
        seen.update(parameters)
        raise telecine.Cancelled("enough", expected="seen", fix="None.")

    monkeypatch.setattr(Pipeline, "stream", stream)
    options = {
        "negative_prompt": "grey", "frame_rate": 12.5, "timesteps": [900.0, 20.0], "guidance_scale": 1.5,
        "guidance_rescale": [0.25, 0.5], "guidance_sigmas": [1.0, 0.5], "stg_scale": 1.5, "stg_mode": "attention_skip",
        "stg_blocks": [11, 25], "num_videos_per_prompt": 2, "decode_timestep": 0.5, "decode_noise_scale": [0.25, 0.5],
        "max_sequence_length": 7, "output_type": "uint8", "preset": "p", "pipeline": "q", "seed": [3, 4],
        "tiling": "seamless", "tile_size": 512, "tile_stride": 256, "tile_frames": 64, "tile_frame_stride": 32,
        "memory_limit": "8GiB", "strength": 0.25,
    }  # fmt: skip
    arguments = [
        item
        for name, value in options.items()
        for one in (value if name == "seed" else [value])
        for item in (f"--{name.replace('_', '-')}", ",".join(map(str, one)) if isinstance(one, list) else one)
    ]
    assert run("-o", tmp_path / "clip.mp4", "--cfg-star", "--use-dynamic-cfg", *arguments).exit_code == 1
    options["cfg_star"] = options["use_dynamic_cfg"] = True
    sizes = {"height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "prompt": "a red ball"}
    assert {name: seen[name] for name in options | sizes} == options | sizes


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("19", [19]),
        ("11,25", [11, 25]),
        ("", []),
        ("11, 25;22;;28", [[11, 25], [22], [], [28]]),
        (";", [[], []]),
        ("28;", [[28], []]),
        ("-1", [-1]),  # for generate to refuse
    ],
)
def test_blocks_are_lists_by_commas_and_lists_of_them_by_semicolons(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, blocks: list[object]
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(Pipeline, "stream", lambda _, *, stg_blocks, **rest: seen.append(stg_blocks))
    run("-o", tmp_path / "clip.mp4", "--stg-blocks", text)
    assert seen == [blocks]


def test_what_is_not_asked_is_left_to_presets_and_defaults(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(Pipeline, "stream", lambda _, **parameters: seen.update(parameters))
    run("-o", tmp_path / "clip.mp4")
    names = ("guidance_scale", "guidance_rescale", "guidance_sigmas", "cfg_star", "stg_scale", "stg_mode", "stg_blocks")
    assert {name: seen[name] for name in names} == dict.fromkeys(names)


@pytest.mark.parametrize("arguments", [["--stg-blocks", "a"], ["--stg-blocks", "1;2.5"], ["--stg-scale", "1;2"]])
def test_lists_that_cannot_be_read_are_wrong_usage(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    result = run("-o", tmp_path / "clip.mp4", *arguments)
    assert (result.exit_code, "is not a list of" in result.stderr) == (2, True)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device")
def test_a_full_disk_under_stdout_is_an_error(tiny_bundle: Path) -> None:
    script = Path(sys.executable).with_name("telecine")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [script, "inspect", tiny_bundle], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


def test_a_full_disk_leaves_no_latents(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("-o", tmp_path / "out.safetensors", "--output-type", "latent")
    assert (result.exit_code, "could not be written (No space left on device)" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--height", "65"], "height is 65; expected a positive multiple of 32. Use 64 or 96."),
        (["--prompt-embeds", "EMBEDS"], "prompt and prompt_embeds given"),
        (["--preset", "best"], "preset 'best'; expected one of recommended"),
        (["--pipeline", "LTXLongPipeline"], "pipeline LTXLongPipeline"),
        (["--backend", "tensorrt"], "expected engines that telecine build wrote. Run: telecine build BUNDLE"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--provider", "NoSuchProvider"], "NoSuchProvider"),
        (["--timesteps", "500,900"], "strictly descending"),
        (["--decode-timestep", "0.1,0.2,0.3"], "decode_timestep is"),
    ],
)
def test_wrong_requests_are_explained(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    embeds = tmp_path / "embeds.safetensors"
    save_file({"prompt_embeds": np.zeros((1, 5, 32), np.float32)}, embeds)
    result = run("-o", tmp_path / "clip.mp4", *[str(embeds) if a == "EMBEDS" else a for a in arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("telecine: ")
    assert words in result.stderr
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("arguments", [[], ["-o", "x.mp4", "--height", "tall"], ["-o", "x.mp4", "--no-such-option"]])
def test_wrong_usage_exits_with_2(arguments: list[str], tiny_bundle: Path) -> None:
    assert CliRunner().invoke(main, ["generate", str(tiny_bundle), *arguments]).exit_code == 2


def test_frames_are_rounded_with_a_warning(tiny_bundle: Path, tmp_path: Path) -> None:
    telecine_script = Path(sys.executable).with_name("telecine")
    arguments = ["--prompt", "a", *SMALL, "--num-frames", "12", "-o", tmp_path / "clip.mp4"]
    done = subprocess.run(
        [telecine_script, "generate", tiny_bundle, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "num_frames 12 is not 8*k+1: making 9 frames" in done.stderr
    assert done.stdout == f"{tmp_path / 'clip.mp4'}\n"
