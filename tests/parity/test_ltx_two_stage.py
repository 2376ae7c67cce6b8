"""`generate(second_stage=...)` makes the frames of the three calls to diffusers that its documentation describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXLatentUpsamplePipeline
from PIL import Image

import telecine
from telecine.families.ltx_video import LTX_VIDEO

pytestmark = pytest.mark.skipif(
    "LTXConditionPipeline" not in LTX_VIDEO.pipelines, reason="this telecine has no LTXConditionPipeline"
)

# The condition pipeline gives the scheduler no mu: diffusers cannot run it with dynamic shifting.
STATIC = {"use_dynamic_shifting": False, "shift_terminal": None}
# A size that is not on the grid: stages of 64 x 96 and 128 x 192, resized to it.
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left", "negative_prompt": "blurry", "num_frames": 9,
    "num_inference_steps": 3, "guidance_scale": 3.0, "guidance_rescale": 0.7,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025, "max_sequence_length": 32,
}  # fmt: skip
HEIGHT, WIDTH = 100, 150


@pytest.fixture(scope="module")
def reference(pair: Any, tiny_upscaler: Path) -> tuple[Any, Any]:
    """diffusers' two pipelines."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pair.theirs.scheduler.config, **STATIC)
    pipelines = (
        LTXConditionPipeline(**pair.theirs.components | {"scheduler": scheduler}),
        LTXLatentUpsamplePipeline.from_pretrained(tiny_upscaler),
    )
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


@pytest.fixture
def ours(upscaler_bundle: Path, pair: Any, edited_bundle: Callable[..., Path]) -> Iterator[telecine.Pipeline]:
    scheduler = pair.ours.bundle.manifest.host["scheduler"] | STATIC
    bundle = edited_bundle(upscaler_bundle, host={"scheduler": scheduler}, pipeline="LTXConditionPipeline")
    with telecine.load(bundle) as pipeline:
        yield pipeline


def recipe(reference: tuple[Any, Any], seed: int, second: dict[str, Any], **request: Any) -> np.ndarray:
    """(B, 9, 128, 192, 3) frames of the second stage: low resolution, upsampling, short denoising."""
    pipe, upsample = reference
    upsampling = {name: second.pop(name) for name in ("adain_factor", "tone_map_compression_ratio") if name in second}

    def run(size: int, **changes: Any) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        return pipe(**request | changes, height=64 * size, width=96 * size, generator=generator).frames

    coarse = run(1, output_type="latent")
    larger = upsample(latents=coarse, output_type="latent", **upsampling).frames
    return run(2, latents=larger, output_type="np", **{"timesteps": None} | second)


def resized(frames: np.ndarray) -> np.ndarray:
    """(B, F, HEIGHT, WIDTH, 3): Pillow resizes floats plane by plane, and overshoots what is white or black."""
    size = frames.shape[2:4]
    planes = np.ascontiguousarray(np.moveaxis(frames, -1, 2)).reshape(-1, *size)
    smaller = [np.asarray(Image.fromarray(plane).resize((WIDTH, HEIGHT))) for plane in planes]
    return np.moveaxis(np.stack(smaller).clip(0, 1).reshape(len(frames), -1, 3, HEIGHT, WIDTH), 2, -1)


@pytest.mark.parametrize(
    ("change", "second"),
    [
        ({}, {"denoise_strength": 0.4, "num_inference_steps": 5}),
        (
            {"guidance_scale": 1.0, "timesteps": [1000, 981, 909, 725]},
            {
                "adain_factor": 1.0, "tone_map_compression_ratio": 0.6,
                "denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0],
            },
        ),
    ],
    ids=["dev", "distilled"],
)  # fmt: skip
def test_it_is_three_calls_to_diffusers(
    change: dict[str, Any], second: dict[str, Any], pair: Any, ours: telecine.Pipeline, reference: tuple[Any, Any]
) -> None:
    made = ours.generate(**REQUEST | change, height=HEIGHT, width=WIDTH, seed=4, second_stage=second).frames
    pair.assert_close(made, resized(recipe(reference, 4, dict(second), **REQUEST | change)))


def test_a_batch_is_its_videos(pair: Any, ours: telecine.Pipeline, reference: tuple[Any, Any]) -> None:
    """One by one: diffusers itself fails at a batch with a denoise_strength below 1."""
    texts = {"a red ball": "blurry", "the old sailor walks": ""}
    second = {"denoise_strength": 0.7, "num_inference_steps": 3, "adain_factor": 0.5}
    batch = {"prompt": list(texts), "negative_prompt": list(texts.values()), "seed": [4, 5]}
    made = ours.generate(**REQUEST | batch, height=HEIGHT, width=WIDTH, second_stage=second).frames
    theirs = [
        recipe(reference, seed, dict(second), **REQUEST | {"prompt": prompt, "negative_prompt": negative})
        for seed, (prompt, negative) in enumerate(texts.items(), start=4)
    ]
    pair.assert_close(made, resized(np.concatenate(theirs)))
