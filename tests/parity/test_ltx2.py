"""LTX-2: telecine makes the frames and the sound that diffusers' pipelines make, in the style of both releases.

Same source, same request, same seed, fp32, through the whole of both: Gemma-3 and its tokenizer, connectors,
transformer, both VAEs and the vocoder. Frames are in [0, 1], sound in [-1, 1]; bounds are those of `conftest.Bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
)
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image

import telecine
from telecine import Condition
from telecine.families.ltx2.schedule import DISTILLED_SIGMAS, SECOND_STAGE_SIGMAS
from telecine.results import Result

# What must hold of a whole run: anywhere, and on average. A flat clip or a silence hides every fault.
CONTRACT = (2e-3, 2e-5)
MIN_SPREAD = 0.05
PIPELINES = {
    "text": LTX2Pipeline, "image": LTX2ImageToVideoPipeline, "conditions": LTX2ConditionPipeline,
}  # fmt: skip
# Unequal sides, so that none can stand for another; 9 frames at 24 a second are 9 latents of sound, 33 mel frames.
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "negative_prompt": "worst quality, blurry",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "max_sequence_length": 32,
    "spatio_temporal_guidance_blocks": [1],
}
TWO: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "The old sailor walks through the quiet forest"],
    "negative_prompt": ["blurry", "jittery"],
    "seed": [3, 8],
}
PLAIN: dict[str, Any] = {
    "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0,
}  # fmt: skip
STYLES = {"2.0": {"use_cross_timestep": False}, "2.3": {}}
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)
    for seed, sides in enumerate([(40, 70), (100, 130)])
]
VIDEO = np.random.default_rng(6).integers(0, 256, (9, 70, 90, 3), np.uint8)


class Pair:
    """A style on both sides. Requests use telecine's names, which are diffusers' but for `seed`."""

    def __init__(self, style: str, source: Path, bundle: Path) -> None:
        self.style, self.ours = style, telecine.load(bundle)
        self._pipelines: dict[Any, Any] = {LTX2Pipeline: DiffusionPipeline.from_pretrained(source)}
        assert type(self._pipelines[LTX2Pipeline]) is LTX2Pipeline

    def theirs(self, kind: Any) -> Any:
        if kind not in self._pipelines:
            self._pipelines[kind] = kind(**self._pipelines[LTX2Pipeline].components)
        self._pipelines[kind].set_progress_bar_config(disable=True)
        return self._pipelines[kind]

    def run_ours(self, kind: Any, **request: Any) -> Result:
        return self.ours.generate(**REQUEST | STYLES[self.style] | request, pipeline=kind.__name__)

    def run_theirs(self, kind: Any, *, seed: Any, output_type: str, **request: Any) -> tuple[np.ndarray, np.ndarray]:
        generators = [torch.Generator("cpu").manual_seed(each) for each in np.atleast_1d(seed).tolist()]
        asked = {name: _as_theirs(name, each) for name, each in (REQUEST | STYLES[self.style] | request).items()}
        video, audio = self.theirs(kind)(
            **asked,
            generator=generators if isinstance(seed, list) else generators[0],
            output_type=output_type,
            return_dict=False,
        )
        return np.asarray(video), audio.detach().float().numpy()

    def assert_same(self, kind: Any, *, seed: Any = 0, output_type: str = "np", **request: Any) -> Result:
        made = self.run_ours(kind, **request, seed=seed, output_type=output_type)
        video, audio = self.run_theirs(kind, seed=seed, output_type=output_type, **request)
        latent = output_type == "latent"
        assert_close(made.latents if latent else made.frames, video)
        assert_close(made.audio_latents if latent else made.audio, audio)
        return made


def _as_theirs(name: str, value: Any) -> Any:
    if name == "conditions":
        return [_condition(each) for each in value]
    if name == "image":
        return [Image.fromarray(each) for each in value] if isinstance(value, list) else Image.fromarray(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _condition(given: Condition) -> LTX2VideoCondition:
    frames = given.video if given.image is None else Image.fromarray(given.image)
    index = given.index if given.index is not None else -(-given.frame_index // 8)
    return LTX2VideoCondition(frames=frames, index=index, strength=given.strength, crf=given.crf)


def assert_close(ours: np.ndarray | None, theirs: np.ndarray, bounds: tuple[float, float] = CONTRACT) -> None:
    assert ours is not None
    assert ours.shape == theirs.shape
    assert theirs.std() >= MIN_SPREAD, "a flat clip, or silence, proves nothing"
    apart = np.abs(ours.astype(np.float64) - theirs)
    assert apart.max() <= bounds[0]
    assert apart.mean() <= bounds[1]


@pytest.fixture(scope="module")
def pairs(ltx2: Callable[[str], tuple[Path, Path, Path]]) -> Iterator[Callable[[str], Pair]]:
    made: dict[str, Pair] = {}

    def get(style: str) -> Pair:
        if style not in made:
            source, _, bundle = ltx2(style)
            made[style] = Pair(style, source, bundle)
        return made[style]

    yield get
    for pair in made.values():
        pair.ours.close()


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("style", ["2.3", slow("2.0")])
class TestText:
    def test_all_kinds_of_guidance(self, pairs: Callable[[str], Pair], style: str) -> None:
        made = pairs(style).assert_same(LTX2Pipeline)
        assert made.sample_rate == {"2.0": 24000, "2.3": 48000}[style]

    def test_a_batch_without_guidance_and_its_seeds(self, pairs: Callable[[str], Pair], style: str) -> None:
        pairs(style).assert_same(LTX2Pipeline, **PLAIN, **TWO)

    def test_latents(self, pairs: Callable[[str], Pair], style: str) -> None:
        pairs(style).assert_same(LTX2Pipeline, **PLAIN, output_type="latent", seed=5)


@pytest.mark.parametrize(
    ("style", "change"),
    [
        ("2.3", {"guidance_scale": 3.0, "audio_guidance_scale": 0, "guidance_rescale": 0.5}),
        ("2.3", {"audio_stg_scale": 2.0, "spatio_temporal_guidance_blocks": [0, 1]}),
        ("2.3", {"modality_scale": 2.5, "audio_guidance_rescale": 0.9}),
        slow("2.0", {"audio_modality_scale": 2.5}),
        slow("2.0", {"guidance_scale": 4.0}),
        slow("2.3", {"stg_scale": 1.0, "guidance_scale": 2.0, **TWO}),
    ],
    ids=str,
)
def test_one_kind_of_guidance_alone(pairs: Callable[[str], Pair], style: str, change: dict[str, Any]) -> None:
    pairs(style).assert_same(LTX2Pipeline, **PLAIN | change)


@pytest.mark.parametrize(
    ("style", "change"),
    [
        ("2.3", {"num_frames": 17, "frame_rate": 25.0, "motion_speed": 0.5}),
        ("2.3", {"height": 96, "width": 64, "sigmas": list(DISTILLED_SIGMAS)[4:]}),
        slow("2.0", {"num_frames": 25, "frame_rate": 30.0}),
        slow("2.0", {"num_frames": 12}),  # 9 frames, and sound for 12
        slow("2.3", {"num_inference_steps": 2}),
        slow("2.3", {"num_inference_steps": 7, "num_videos_per_prompt": 2}),
        slow("2.3", {"negative_prompt": None, "prompt": "", "guidance_scale": 3.0}),
    ],
    ids=str,
)
def test_other_sizes_and_steps(pairs: Callable[[str], Pair], style: str, change: dict[str, Any]) -> None:
    pairs(style).assert_same(LTX2Pipeline, **PLAIN | change)


@pytest.mark.parametrize(
    ("style", "change"),
    [
        ("2.3", {"image": IMAGES[0], "image_crf": 0}),
        ("2.3", {"image": IMAGES, "image_crf": 0, **PLAIN, **TWO}),
        slow("2.0", {"image": IMAGES[0], "image_crf": 0}),
        slow("2.3", {"image": IMAGES[1], **PLAIN}),  # compressed by the codec of this machine on both sides
    ],
    ids=["guided-2.3", "batch-2.3", "guided-2.0", "compressed-2.3"],
)
def test_an_image(pairs: Callable[[str], Pair], style: str, change: dict[str, Any]) -> None:
    pairs(style).assert_same(LTX2ImageToVideoPipeline, **change)


CONDITIONS = {
    "keyframes": [
        Condition(image=IMAGES[0], strength=0.8, crf=0),
        Condition(video=VIDEO, frame_index=1, strength=0.6),
        Condition(image=IMAGES[1], index=-1, crf=0),
    ],
    "a video": [Condition(video=VIDEO, strength=0.7)],
    "none": [],
}


@pytest.mark.parametrize(
    ("style", "name", "change"),
    [
        ("2.3", "keyframes", {"num_frames": 17}),
        ("2.3", "a video", {**PLAIN, **TWO}),
        slow("2.0", "a video", {**PLAIN, **TWO}),
        slow("2.0", "keyframes", {"num_frames": 17}),
        slow("2.3", "keyframes", {"num_frames": 17, **PLAIN, **TWO}),
        slow("2.3", "none", PLAIN),
    ],
)
def test_conditions(pairs: Callable[[str], Pair], style: str, name: str, change: dict[str, Any]) -> None:
    pairs(style).assert_same(LTX2ConditionPipeline, conditions=CONDITIONS[name], **change)


@pytest.mark.parametrize("kind", [LTX2Pipeline, slow(LTX2ImageToVideoPipeline), slow(LTX2ConditionPipeline)])
def test_given_latents_of_both(pairs: Callable[[str], Pair], kind: Any) -> None:
    random = np.random.default_rng(11)
    given = {
        "latents": random.standard_normal((2, 16, 2, 2, 3), np.float32),
        "audio_latents": random.standard_normal((2, 2, 9, 4), np.float32),
    }
    second = {"sigmas": list(SECOND_STAGE_SIGMAS), "noise_scale": SECOND_STAGE_SIGMAS[0]}
    pairs("2.3").assert_same(kind, **PLAIN, **TWO, **given, **second)


@pytest.fixture(scope="module")
def upsampling(ltx2: Callable[[str], tuple[Path, Path, Path]]) -> Callable[[str], Any]:
    def get(style: str) -> Any:
        made = LTX2LatentUpsamplePipeline.from_pretrained(ltx2(style)[1])
        made.set_progress_bar_config(disable=True)
        return made

    return get


@pytest.mark.parametrize("style", ["2.3", slow("2.0")])
@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_upscaling_latents(
    pairs: Callable[[str], Pair], upsampling: Callable[[str], Any], style: str, output_type: str
) -> None:
    latents = np.random.default_rng(2).standard_normal((2, 16, 2, 2, 3), np.float32)
    asked = {"adain_factor": 0.6, "tone_map_compression_ratio": 0.4, "output_type": output_type}
    made = pairs(style).ours.upscale(latents=latents, **asked)
    expected = upsampling(style)(latents=torch.from_numpy(latents), height=64, width=96, **asked).frames
    assert_close(made.latents if output_type == "latent" else made.frames, np.asarray(expected))


@pytest.mark.parametrize("style", ["2.3", slow("2.0")])
@pytest.mark.parametrize("kind", [LTX2Pipeline, slow(LTX2ImageToVideoPipeline), slow(LTX2ConditionPipeline)])
def test_two_stages(pairs: Callable[[str], Pair], upsampling: Callable[[str], Any], style: str, kind: Any) -> None:
    """diffusers' recipe by hand: latents of a small clip, upsampled, denoised again by a static scheduler."""
    pair, seed = pairs(style), 4
    inputs = {
        LTX2Pipeline: {},
        LTX2ImageToVideoPipeline: {"image": IMAGES[0], "image_crf": 0},
        LTX2ConditionPipeline: {"conditions": CONDITIONS["a video"]},
    }[kind]
    first = {"guidance_scale": 2.0, "modality_scale": 1.0, "stg_scale": 0.0, "audio_modality_scale": 1.0,
             "audio_stg_scale": 0.0}  # fmt: skip
    made = pair.run_ours(kind, **first, **inputs, height=128, width=192, seed=seed, output_type="np", second_stage={})
    latents, audio_latents = pair.run_theirs(kind, **first, **inputs, seed=seed, output_type="latent")
    larger = upsampling(style)(latents=torch.from_numpy(latents), output_type="latent", height=64, width=96).frames
    theirs = pair.theirs(kind)
    scheduler = theirs.scheduler
    theirs.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        scheduler.config, use_dynamic_shifting=False, shift_terminal=None
    )
    try:
        video, audio = pair.run_theirs(
            kind, **PLAIN, **inputs, height=128, width=192, seed=seed, output_type="np",
            latents=larger.numpy(), audio_latents=audio_latents,
            sigmas=list(SECOND_STAGE_SIGMAS), noise_scale=SECOND_STAGE_SIGMAS[0],
        )  # fmt: skip
    finally:
        theirs.scheduler = scheduler
    assert_close(made.frames, video)
    assert_close(made.audio, audio)
