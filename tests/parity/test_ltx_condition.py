"""Conditioned video on LTX-Video: telecine makes the frames that `diffusers.LTXConditionPipeline` makes.

Same source, same request, same seed, fp32. `Pair.assert_same` states the bounds (conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline
from diffusers.pipelines.ltx import pipeline_ltx_condition
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from telecine import Condition
from telecine.errors import RequestError
from telecine.noise import SECOND_STREAM

RANDOM = np.random.default_rng(0)
# Of another size than the clip, so that they are resized.
IMAGE, OTHER = RANDOM.integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
VIDEO = RANDOM.integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 4,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
TWO = {"prompt": ["The old sailor walks through the quiet forest", "a blue cube"]}
FIRST = Condition(image=IMAGE)
KEYFRAME = Condition(image=OTHER, frame_index=8)


def on(*conditions: Condition, **change: Any) -> dict[str, Any]:
    return {"conditions": list(conditions)} | change


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


@cases(
    {
        "one": {},
        "two": TWO,
        "no-guidance": {"guidance_scale": 1.0, "num_frames": 25, "height": 96, "width": 160},
        "rescaled": {"guidance_rescale": 0.7, "frame_rate": 24},
        "seeds": TWO | {"seed": [7, 3]},
        "timesteps": {"timesteps": [1000, 993, 909, 725, 421, 0]},
        "one-step": {"num_inference_steps": 1},
        "latents-out": TWO | {"output_type": "latent"},
    }
)
def test_text_alone(condition_pair: Any, change: dict[str, Any]) -> None:
    condition_pair.assert_same(**REQUEST | change)


@cases(
    {
        "image": {"image": IMAGE},
        "image-held-softly": on(Condition(image=IMAGE, strength=0.6)),
        "image-held-less": on(Condition(image=IMAGE, strength=0.3)),
        "video": on(Condition(video=VIDEO[:9])),
        "video-held-softly": on(Condition(video=VIDEO[:9], strength=0.6)),
        "video-trimmed": on(Condition(video=VIDEO[:14])),
        "whole-video": on(Condition(video=VIDEO)),
        "no-image-noise": on(FIRST, image_cond_noise_scale=0),
        "much-image-noise": on(FIRST, image_cond_noise_scale=0.7),
        "two": on(FIRST) | TWO,
        "seeds": on(FIRST) | TWO | {"seed": [7, 3]},
        "no-guidance": on(FIRST, guidance_scale=1.0, output_type="latent"),
        "odd-size": on(FIRST, num_frames=25, height=96, width=160, guidance_rescale=0.7),
    }
)
def test_in_place(condition_pair: Any, change: dict[str, Any]) -> None:
    condition_pair.assert_same(**REQUEST | change)


@cases(
    {
        "image": on(KEYFRAME),
        "softly": on(Condition(image=IMAGE, frame_index=8, strength=0.6)),
        "between-latents": on(Condition(image=IMAGE, frame_index=5), frame_rate=24),
        "last-frame": on(FIRST, Condition(image=OTHER, frame_index=16)),
        "video": on(Condition(video=VIDEO[:9], frame_index=8, strength=0.8)),
        "video-between-latents": on(Condition(video=VIDEO[:9], frame_index=3)),
        "long-video": on(Condition(video=VIDEO, frame_index=8, strength=0.9), num_frames=33),
        "several": on(
            Condition(video=VIDEO[:9], strength=0.7),
            KEYFRAME,
            Condition(video=VIDEO, frame_index=8, strength=0.6),
            Condition(image=IMAGE, frame_index=24, strength=0.4),
            num_frames=33,
            height=32,
        ),
        "latents-out": on(KEYFRAME, output_type="latent"),
        "distilled": on(FIRST, KEYFRAME, timesteps=[1000, 993, 981, 909, 725, 0.03], guidance_scale=1.0),
    }
)
def test_keyframes(condition_pair: Any, change: dict[str, Any]) -> None:
    condition_pair.assert_same(**REQUEST | change)


@cases({"two": on(FIRST, KEYFRAME), "seeds": on(KEYFRAME, FIRST, seed=[7, 3])})
def test_keyframes_of_several_videos(
    condition_pair: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    # diffusers cannot join one video's keyframes with a batch's latents: repeat them, its own code does the rest.
    original = LTXConditionPipeline._normalize_latents
    monkeypatch.setattr(
        condition_pair.theirs, "_normalize_latents", lambda *arguments: original(*arguments).repeat(2, 1, 1, 1, 1)
    )
    condition_pair.assert_same(**REQUEST | TWO | change)


@cases(
    {
        "half": {"denoise_strength": 0.5},
        "with-conditions": on(FIRST, KEYFRAME, denoise_strength=0.8),
        "upscaling": {"denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0]},
        "nothing": {"denoise_strength": 0.1},
        # diffusers multiplies by a sigma a video along the last axis: it works where there are as many columns.
        "two": TWO | {"denoise_strength": 0.5, "width": 64},
    }
)
def test_given_latents(condition_pair: Any, change: dict[str, Any]) -> None:
    request = REQUEST | change
    shape = (1 if request["prompt"] == REQUEST["prompt"] else 2, 16, 3, 2, request["width"] // 32)
    latents = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    condition_pair.assert_same(**request, latents=latents)


def test_a_decoder_without_timesteps(pairs_of: Callable[..., Any], plain_source: Path, plain_bundle: Path) -> None:
    settings = {"use_dynamic_shifting": False, "shift_terminal": None}
    pair = pairs_of(LTXConditionPipeline, plain_source, plain_bundle, **settings)
    pair.assert_same(**REQUEST | on(FIRST, Condition(image=OTHER, frame_index=8, strength=0.6)))


def test_an_image_for_each_video(condition_pair: Any) -> None:
    # diffusers uses the first alone; each video made alone is right, with the same noise: one seed each.
    request = REQUEST | {"image_cond_noise_scale": 0}
    made = condition_pair.run_ours(**request | TWO | {"image": [IMAGE, OTHER], "seed": [7, 3]})
    for index, (image, seed) in enumerate([(IMAGE, 7), (OTHER, 3)]):
        alone = request | {"prompt": TWO["prompt"][index], "image": image, "seed": seed}
        condition_pair.assert_close(made[index : index + 1], condition_pair.run_theirs(**alone))


def test_stochastic_sampling(pairs_of: Callable[..., Any], tiny_source: Path, tiny_bundle: Path) -> None:
    settings = {"use_dynamic_shifting": False, "shift_terminal": None, "stochastic_sampling": True}
    pair = pairs_of(LTXConditionPipeline, tiny_source, tiny_bundle, **settings)
    # diffusers hands the negated velocity to a branch that does not undo it: hand it the velocity.
    original = pair.theirs.scheduler.step
    pair.theirs.scheduler.step = lambda velocity, *arguments, **options: original(-velocity, *arguments, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SECOND_STREAM)
        pair.assert_same(**REQUEST | on(FIRST, KEYFRAME))


def test_a_scheduler_that_shifts_by_the_tokens(
    pairs_of: Callable[..., Any], tiny_source: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers gives it no mu, and timesteps that do not follow the shifted sigmas: give it mu, and sigmas.
    pair = pairs_of(LTXConditionPipeline, tiny_source, tiny_bundle)
    config = pair.theirs.scheduler.config
    mu = calculate_shift(18, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)

    def shifted(scheduler: Any, steps: int, device: Any, timesteps: Any) -> Any:
        scheduler.set_timesteps(sigmas=np.asarray(timesteps, np.float32) / 1000, mu=mu)
        return scheduler.timesteps, len(timesteps)

    monkeypatch.setattr(pipeline_ltx_condition, "retrieve_timesteps", shifted)
    pair.assert_same(**REQUEST | on(FIRST, KEYFRAME))


def test_a_video_is_a_condition_at_the_first_frame(condition_pair: Any) -> None:
    theirs = condition_pair.run_theirs(**REQUEST | on(Condition(video=VIDEO[:9])))
    condition_pair.assert_close(condition_pair.run_ours(**REQUEST, video=VIDEO[:9]), theirs)


def test_conditions_choose_the_pipeline_in_a_bundle_of_another(condition_pair: Any, rescheduled: Any) -> None:
    text_to_video = rescheduled(use_dynamic_shifting=False, shift_terminal=None)
    request = REQUEST | on(FIRST, KEYFRAME)
    np.testing.assert_array_equal(text_to_video.run_ours(**request), condition_pair.run_ours(**request))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (on(FIRST, image=IMAGE), "an image and conditions"),
        (on(FIRST, video=VIDEO), "a video and conditions"),
        ({"image": IMAGE, "video": VIDEO}, "an image and a video"),
        ({"strength": 0.5}, "strength for a ltx-video model; .*conditions"),
        ({"image": [IMAGE, OTHER, IMAGE]}, "3 images; expected 1"),
        (on(Condition(image=IMAGE, frame_index=17)), "a condition at frame 17 of 17"),
        (on(Condition(video=VIDEO, frame_index=9), num_frames=33), "a video of 17 frames at frame 9; .*multiple of 8"),
        ({"conditions": [IMAGE]}, "conditions hold ndarray"),
        ({"denoise_strength": 0.5}, "no latents with a denoise_strength of 0.5"),
        ({"latents": np.zeros((1, 16, 3, 2, 3))}, "latents with a denoise_strength of 1"),
        ({"latents": np.zeros((1, 18, 16)), "denoise_strength": 0.5}, r"expected \(1, 16, 3, 2, 3\)"),
        ({"denoise_strength": 1.5}, "denoise_strength is 1.5"),
        ({"image_cond_noise_scale": -1}, "image_cond_noise_scale is -1"),
        (on(pipeline="LTXPipeline"), "conditions for LTXPipeline; .*takes it: LTXConditionPipeline"),
    ],
)
def test_what_cannot_be_is_refused(condition_pair: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        condition_pair.ours.generate(**REQUEST | change)
