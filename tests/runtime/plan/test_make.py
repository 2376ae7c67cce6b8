"""A plan, replayed by NumPy and ONNX Runtime alone, makes the pipeline's own frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.plans import write_plan
from safetensors.numpy import load_file

import telecine
from telecine.bundle import Bundle
from telecine.errors import BundleError, EngineError, RequestError
from telecine.pipeline import Pipeline
from telecine.plan import make_plan
from telecine.plan.inspection import describe, read_plan
from telecine.tokenizer import Tokenizer

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
VIDEO = np.random.default_rng(1).integers(0, 256, (9, 40, 70, 3), dtype=np.uint8)
# Unequal sides, so that none can stand for another. Two steps: the second reads what the first wrote.
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "negative_prompt": "worst quality",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "seed": 0,
    "output_type": "np",
}
TILES = {
    "num_frames": 25,
    "width": 128,
    "tile_size": 96,
    "tile_stride": 64,
    "tile_frames": 16,
    "tile_frame_stride": 8,
}
CONDITIONS = [
    telecine.Condition(image=IMAGE, frame_index=0, strength=1.0),
    telecine.Condition(image=IMAGE[::-1], frame_index=8, strength=0.6),
]
# The bound. Only the exponential of an encoder's log-variance differs at all, in its last bit.
BOUND = 1e-5
# Of CogVideoX's: what differs in the last bit stands beside the latents, or is the latents, and grows in every step
# (9.4e-6 in the worst of ten seeds).
ENCODED_BOUND = 2e-5


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Iterator[Pipeline]:
    with telecine.load(tiny_bundle, backend="onnxruntime", device="cpu") as opened:
        yield opened


@pytest.fixture
def replayed(pipe: Pipeline, replay: Any, tmp_path: Path) -> Callable[..., np.ndarray]:
    """`replayed(videos, **parameters)`: what the plan of a request comes to."""

    def make(videos: int = 1, **parameters: Any) -> np.ndarray:
        make_plan(pipe.bundle, tmp_path / "plan", videos=videos, **parameters)
        made: np.ndarray = replay(tmp_path / "plan", pipe.bundle.root).run({})["result"]
        return made

    return make


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"guidance_rescale": 0.7},
        {"guidance_scale": 1.0, "output_type": "uint8"},
        {"output_type": "latent"},
        {"image": IMAGE, "guidance_rescale": 0.7},
        {"guidance_scale": [3.0, 1.0], "stg_scale": [0.0, 1.0], "stg_blocks": [1], "cfg_star": True},
        {"tiling": "seamless", **TILES},
        {"tiling": "diffusers", **TILES},
        {"conditions": CONDITIONS, "image_cond_noise_scale": 0.1, "num_frames": 25},
    ],
    ids=["text", "rescale", "bytes", "latents", "image", "stg", "seamless", "diffusers", "conditions"],
)
def test_a_replay_makes_the_pipelines_frames(
    pipe: Pipeline, replayed: Callable[..., np.ndarray], change: dict[str, Any]
) -> None:
    result = pipe.generate(**REQUEST | change)
    want = result.frames if result.frames is not None else result.latents
    assert want is not None
    got = replayed(**REQUEST | change)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    bound = 1 if want.dtype == np.uint8 else BOUND
    assert np.abs(got.astype(np.float32) - want).max() <= bound
    assert want.std() > 0.05  # a grey clip would prove nothing


def test_a_batch_has_seeds_and_decoder_timesteps_of_its_own(
    pipe: Pipeline, replayed: Callable[..., np.ndarray]
) -> None:
    request = REQUEST | {
        "prompt": ["a red ball", "a blue cube falls"],
        "seed": [1, 2, 3, 4],
        "decode_timestep": [0.1, 0.2, 0.0, 0.3],
        "guidance_rescale": 0.5,
    }
    want = pipe.generate(**request, num_videos_per_prompt=2).frames
    np.testing.assert_allclose(replayed(videos=4, **request), want, rtol=0, atol=BOUND)


def test_a_decoder_that_draws_noise(replay: Any, noisy_bundle: Path, tmp_path: Path) -> None:
    with telecine.load(noisy_bundle, backend="onnxruntime", device="cpu") as pipe:
        want = pipe.generate(**REQUEST).frames
        make_plan(pipe.bundle, tmp_path / "plan", **REQUEST)
    np.testing.assert_allclose(replay(tmp_path / "plan", noisy_bundle).run({})["result"], want, rtol=0, atol=BOUND)


@pytest.mark.parametrize("change", [{}, {"use_dynamic_cfg": True, "num_inference_steps": 4}], ids=["plain", "dynamic"])
def test_cogvideox_in_chunks_with_caches(
    cogvideox: Callable[..., tuple[Path, Path]], replay: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Nothing in a plan is of one family: what the host code of this one does is recorded as it is."""
    request = REQUEST | {"height": 48, "width": 80, "num_frames": 17} | change
    with telecine.load(cogvideox("2b")[1], backend="onnxruntime", device="cpu") as pipe:
        want = pipe.generate(**request).frames
        plan = make_plan(pipe.bundle, tmp_path / "plan", **request)
    assert set(plan["components"]["vae_decoder"]) == {"first", "next"}
    np.testing.assert_allclose(replay(tmp_path / "plan", pipe.bundle.root).run({})["result"], want, rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("style", "change"),
    [
        ("1.5-5b-I2V", {"image": IMAGE, "num_frames": 9}),
        ("2b", {"video": VIDEO, "strength": 0.6, "num_inference_steps": 4}),
    ],
    ids=["image", "video"],
)
def test_cogvideox_from_an_image_or_a_video(
    cogvideox: Callable[..., tuple[Path, Path]], replay: Any, tmp_path: Path, style: str, change: dict[str, Any]
) -> None:
    """The image, or the video, is in the plan; the host brings the prompt, all of whose tokens are attended to."""
    request = {name: value for name, value in REQUEST.items() if name not in ("prompt", "num_frames")}
    request |= {"height": 48, "width": 80} | change
    with telecine.load(cogvideox(style)[1], backend="onnxruntime", device="cpu") as pipe:
        plan = make_plan(pipe.bundle, tmp_path / "plan", **request)
        assert plan["inputs"] == ["input_ids"]
        tokenizer = Tokenizer.load(pipe.bundle.path(pipe.bundle.manifest.tokenizer))
        tokens = tokenizer.encode(["a red ball"], max_sequence_length=226)
        want = pipe.generate(prompt="a red ball", **request).frames
    assert want is not None
    assert want.std() > 0.05
    assert {"vae_encoder", "transformer", "vae_decoder"} <= set(plan["components"])
    got = replay(tmp_path / "plan", pipe.bundle.root).run({"input_ids": tokens.input_ids})["result"]
    np.testing.assert_allclose(got, want, rtol=0, atol=ENCODED_BOUND)


def test_the_host_may_bring_the_prompt(pipe: Pipeline, replay: Any, tmp_path: Path) -> None:
    """One plan, many prompts: their tokens are filled in. The text stays whole, as its length is not known."""
    request = {name: value for name, value in REQUEST.items() if name != "prompt"}
    plan = make_plan(pipe.bundle, tmp_path / "plan", videos=2, **request)
    assert plan["inputs"] == ["input_ids", "attention_mask"]
    assert plan["buffers"]["input_ids"]["shape"] == [2, 128]
    opened = replay(tmp_path / "plan", pipe.bundle.root)
    tokenizer = Tokenizer.load(pipe.bundle.path(pipe.bundle.manifest.tokenizer))
    for prompts in (["a red ball", "snow"], ["a blue cube falls down the stairs", ""]):
        tokens = tokenizer.encode(prompts, max_sequence_length=128)
        got = opened.run({"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask})["result"]
        np.testing.assert_allclose(got, pipe.generate(prompt=prompts, **request).frames, rtol=0, atol=BOUND)


def test_what_the_folder_says(pipe: Pipeline, tmp_path: Path) -> None:
    plan = make_plan(pipe.bundle, tmp_path / "plan", **REQUEST | {"seed": None})
    assert json.loads((tmp_path / "plan" / "plan.json").read_text()) == plan == read_plan(tmp_path / "plan", check=True)
    tensors = load_file(tmp_path / "plan" / "tensors.safetensors")
    constants = {name: entry for name, entry in plan["buffers"].items() if "tensor" in entry}
    assert {name: (str(value.dtype), list(value.shape)) for name, value in tensors.items()} == {
        name: (entry["dtype"], entry["shape"]) for name, entry in constants.items()
    }
    assert {"transformer.rope_cos", "transformer.rope_index", "transformer.hidden_states.values"} <= set(constants)
    graph = pipe.bundle.graph("transformer").file
    assert plan["components"]["transformer"]["main"]["graph"] == graph.path
    assert plan["components"]["transformer"]["main"]["graph_sha256"] == graph.sha256
    progress = [step for step in plan["steps"] if step["op"] == "progress"]
    assert [(each["step"], each["steps"], each["sigma"]) for each in progress] == [
        (0, 2, 1.0),
        (1, 2, pytest.approx(0.1)),
    ]
    assert plan["output"] == {"kind": "frames", "dtype": "float32", "shape": [1, 9, 64, 96, 3], "frame_rate": 25}
    again = pipe.generate(**REQUEST | {"seed": plan["seeds"]})  # a random seed is told
    assert again.seeds == tuple(plan["seeds"])
    lines = "\n".join(describe(plan))
    assert "makes frames float32 (1, 9, 64, 96, 3)" in lines
    assert "transformer.main: 2 runs, transformer/main.onnx, no engines" in lines


def test_memory_is_shared_and_networks_are_not_loaded(pipe: Pipeline, tmp_path: Path) -> None:
    """What a plan takes does not grow with its steps, but for the constants of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("telecine.backends.onnxruntime.OnnxRuntimeSession.load", lambda *_, **__: pytest.fail("loaded"))
        few, many = (
            make_plan(pipe.bundle, tmp_path / f"{steps}", **REQUEST | {"num_inference_steps": steps})
            for steps in (4, 12)
        )
    assert many["memory"] == few["memory"]
    assert len(many["memory"]) < 0.5 * sum("memory" in entry for entry in many["buffers"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "width is 100"),
        ({"prompt": ["a", "b", "c"]}, "3 prompts for 2 videos"),
        ({"prompt": None, "pipeline": "LTXConditionPipeline"}, "this request needs ndarray.sum of what a network"),
        ({"guidance_rescale": 2}, "guidance_rescale is 2"),
        ({"second_stage": {"denoise_strength": 0.4}}, "two stages in a plan"),
    ],
)
def test_what_is_refused_leaves_nothing(pipe: Pipeline, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_plan(pipe.bundle, tmp_path / "plan", videos=2, **REQUEST | change)
    assert list(tmp_path.iterdir()) == []


def test_a_preset_of_two_stages_is_refused(
    tiny_bundle: Path, edited_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = Bundle.open(edited_bundle(tiny_bundle, presets={"two-stage": {"second_stage": {}}}))
    with pytest.raises(RequestError, match="two stages in a plan"):
        make_plan(bundle, tmp_path / "plan", preset="two-stage", **REQUEST)


def test_only_a_plan_is_overwritten(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RequestError, match="something that telecine did not write"):
        make_plan(pipe.bundle, tmp_path / "mine", overwrite=True, **REQUEST)
    first = make_plan(pipe.bundle, tmp_path / "plan", **REQUEST)
    with pytest.raises(RequestError, match="exists and is not empty"):
        make_plan(pipe.bundle, tmp_path / "plan", **REQUEST)
    assert make_plan(pipe.bundle, tmp_path / "plan", overwrite=True, **REQUEST | {"seed": 5})["seeds"] == [5]
    assert first["seeds"] == [0]


def test_damage_is_told(pipe: Pipeline, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    make_plan(pipe.bundle, plan, **REQUEST)
    content = bytearray((plan / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (plan / "tensors.safetensors").write_bytes(content)
    read_plan(plan, check=False)
    with pytest.raises(BundleError, match=r"tensors\.safetensors has changed"):
        read_plan(plan, check=True)
    (plan / "plan.json").write_text('{"format": 9}')
    with pytest.raises(BundleError, match="is not a plan of format 1"):
        read_plan(plan, check=False)


def test_a_target_s_engines_are_named_and_choose_the_tiles(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    largest = {"batch": (1, 1, 2), "latent_frames": (1, 4, 7), "latent_height": (1, 4, 7), "latent_width": (1, 4, 7)}
    engine = write_plan(bundle, "vae_decoder", profiles=(largest,))
    request = REQUEST | {"width": 416, "height": 64}
    plan = make_plan(bundle, tmp_path / "plan", target="trt-sm89", **request)
    (named,) = plan["components"]["vae_decoder"]["main"]["engines"].items()
    assert named == (engine.parts[-3], str(engine.relative_to(bundle.root)))
    assert plan["components"]["transformer"]["main"]["engines"] == {}
    sizes = [step["inputs"]["latents"] for step in plan["steps"] if step.get("component") == "vae_decoder"]
    assert len(sizes) > 1
    assert {plan["buffers"][name]["shape"][-1] for name in sizes} == {7}
    whole = make_plan(bundle, tmp_path / "whole", **request)
    assert sum(step.get("component") == "vae_decoder" for step in whole["steps"]) == 1


def test_a_target_without_engines(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine for rtx-sm89"):
        make_plan(Bundle.open(pipe.bundle.root), tmp_path / "plan", target="rtx-sm89", **REQUEST)
