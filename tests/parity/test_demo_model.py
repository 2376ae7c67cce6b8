"""The demo model, which is trained, on both sides: telecine makes the frames of diffusers' four pipelines.

The tiny models of the other modules are random, and look through every argument one by one; here are real pictures,
and arguments together. Same source, same request, same seed, fp32. Bounds are `Pair.assert_same`'s (conftest.py).
Frames measure up to 2.2e-5 and 4e-7, latents up to 2.1e-5 and 1.4e-6: two to four times the tiny models', as guidance
is stronger here; the same bounds hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_model.data import combinations, render, sample_scene
from diffusers import LTXConditionPipeline, LTXImageToVideoPipeline, LTXLatentUpsamplePipeline, LTXPipeline
from diffusers.pipelines.ltx import LTXLatentUpsamplerModel

from telecine import Condition

# diffusers' condition pipeline gives the scheduler no mu.
STATIC = {"use_dynamic_shifting": False, "shift_terminal": None}
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left over a green floor",
    "negative_prompt": "worst quality",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
TWO: dict[str, Any] = {
    "prompt": ["a small blue square moves up over a grey wall", "a yellow triangle"],
    "negative_prompt": ["blurry", ""],
}
ODD = {"height": 96, "width": 160, "num_frames": 25}
LARGE = {"height": 128, "width": 160, "num_frames": 25, "num_inference_steps": 2}
# tile_size, tile_stride, tile_frames, tile_frame_stride: each axis of LARGE is cut.
TILES = {"tile_size": 96, "tile_stride": 64, "tile_frames": 16, "tile_frame_stride": 8}


def drawn(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """(F, H, W, 3) bytes of a clip such as the model was trained on."""
    scene = sample_scene(np.random.default_rng(seed), combinations(held_out=False))
    return np.rint((render(scene, frames=frames, height=height, width=width)[0] + 1) * 127.5).astype(np.uint8)


CLIP = drawn(1, 17, 96, 128)
IMAGE, OTHER = CLIP[0], drawn(2, 1, 100, 100)[0]  # of other sizes than what is made: resized
SMALL = drawn(3, 17, 64, 96)
FIRST, KEYFRAME = Condition(image=IMAGE), Condition(image=OTHER, frame_index=16, strength=0.7)
EXTENDED = Condition(video=CLIP[:9], strength=0.9)


@pytest.fixture(scope="module")
def text(pairs_of: Callable[..., Any], demo_source: Path, demo_bundle: Path) -> Any:
    return pairs_of(LTXPipeline, demo_source, demo_bundle)


@pytest.fixture(scope="module")
def image(pairs_of: Callable[..., Any], demo_source: Path, demo_bundle: Path) -> Any:
    return pairs_of(LTXImageToVideoPipeline, demo_source, demo_bundle)


@pytest.fixture(scope="module")
def condition(pairs_of: Callable[..., Any], demo_source: Path, demo_upscaler_bundle: Path) -> Any:
    return pairs_of(LTXConditionPipeline, demo_source, demo_upscaler_bundle, **STATIC)


@pytest.fixture(scope="module")
def upscaling(
    text: Any, upscaling_of: Callable[..., Any], demo_source: Path, demo_upscaler_bundle: Path
) -> Iterator[Any]:
    folder = demo_source / "latent_upsampler"
    upsampler = LTXLatentUpsamplerModel.from_pretrained(folder, dtype=torch.float32)
    return upscaling_of(demo_upscaler_bundle, LTXLatentUpsamplePipeline(text.theirs.vae, upsampler))


@pytest.fixture
def assert_same(diffusers_tiling: Any, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`assert_same(pair, **request)`, where sizes of tiles are for `enable_tiling`; and the figures are printed."""

    def check(pair: Any, **request: Any) -> None:
        sizes = tuple(request[name] for name in TILES if name in request)
        plain = {name: value for name, value in request.items() if name not in TILES}
        if sizes:
            with diffusers_tiling(pair.theirs.vae, sizes):
                theirs = pair.run_theirs(**plain)
            ours = pair.run_ours(**request, tiling="diffusers")
            assert pair.compare(pair.run_ours(**plain), theirs).excess() > 10  # its seams are no rounding
        else:
            ours, theirs = pair.run_ours(**plain), pair.run_theirs(**plain)
        record_property("measured", f"demo model against diffusers: {pair.compare(ours, theirs)}")
        pair.assert_close(ours, theirs)

    return check


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


@cases(
    {
        "as-is": {},
        "odd-size": ODD | {"guidance_scale": 1.0},
        "batch-2-rescaled": TWO | {"guidance_rescale": 0.7, "num_frames": 9},
        "seed-list": TWO | {"seed": [7, 3], "height": 96, "output_type": "uint8"},
        "latents-out": TWO | ODD | {"output_type": "latent", "frame_rate": 12},
        "tiled": LARGE | TILES,
        "tiled-batch-2": LARGE | TWO | TILES | {"height": 64},
    }
)
def test_text_to_video(text: Any, assert_same: Any, change: dict[str, Any]) -> None:
    assert_same(text, **REQUEST | change)


@cases(
    {
        "as-is": {},
        "odd-size": ODD,
        "batch-2-rescaled": TWO | {"image": [IMAGE, OTHER], "guidance_rescale": 0.7, "num_frames": 9},
        # Latents: diffusers cannot draw the decoder's noise from a list of generators here.
        "seed-list": TWO | {"image": [IMAGE, OTHER], "seed": [7, 3], "height": 96, "output_type": "latent"},
        "tiled": LARGE | TILES,
    }
)
def test_image_to_video(image: Any, assert_same: Any, change: dict[str, Any]) -> None:
    assert_same(image, **REQUEST | {"image": IMAGE} | change)


@cases(
    {
        "text-alone": {},
        "image": {"conditions": [FIRST]},
        "odd-size-rescaled": ODD | {"conditions": [FIRST, KEYFRAME], "guidance_rescale": 0.7},
        "video-and-images": {
            "conditions": [EXTENDED, KEYFRAME, Condition(image=IMAGE, frame_index=24, strength=0.4)], "num_frames": 25,
        },
        "video-later": {"conditions": [Condition(video=CLIP, frame_index=8, strength=0.6)], "num_frames": 25},
        "batch-2": TWO | {"conditions": [FIRST], "image_cond_noise_scale": 0.5, "num_frames": 9},
        "seed-list": TWO | {"conditions": [EXTENDED], "seed": [7, 3], "image_cond_noise_scale": 0.0},
        "tiled": LARGE | TILES | {"conditions": [EXTENDED, KEYFRAME]},
    }
)  # fmt: skip
def test_conditions(condition: Any, assert_same: Any, change: dict[str, Any]) -> None:
    assert_same(condition, **REQUEST | change)


@cases({"text-alone": {}, "conditions": {"conditions": [FIRST, KEYFRAME]}})
def test_given_latents_are_denoised_in_part(condition: Any, assert_same: Any, change: dict[str, Any]) -> None:
    latents = condition.run_ours(**REQUEST | {"output_type": "latent", "seed": 1})
    assert_same(condition, **REQUEST | change, latents=latents, denoise_strength=0.6)


@cases(
    {
        "as-is": {"video": SMALL},
        "resized-odd-size": {"video": CLIP[:9], "height": 96, "width": 64, "adain_factor": 1.0},
        "adain-tone-map": {"video": SMALL[:9], "adain_factor": 0.6, "tone_map_compression_ratio": 0.6, "seed": 7},
        "tiled": {"video": SMALL, "adain_factor": 1.0} | TILES,
    }
)
def test_upscaling_a_video(upscaling: Any, assert_same: Any, change: dict[str, Any]) -> None:
    assert_same(upscaling, **{"seed": 0, "decode_timestep": 0.05, "decode_noise_scale": 0.025} | change)


def test_upscaling_a_batch_of_latents(condition: Any, upscaling: Any, assert_same: Any) -> None:
    latents = condition.run_ours(**REQUEST | TWO | {"output_type": "latent", "num_frames": 9})
    assert_same(
        upscaling, latents=latents, seed=[7, 3], decode_timestep=0.05, adain_factor=0.5, tone_map_compression_ratio=0.3
    )


@cases({"text-alone": {}, "conditions": {"conditions": [FIRST, KEYFRAME], "guidance_rescale": 0.7}})
def test_two_stages(condition: Any, upscaling: Any, change: dict[str, Any]) -> None:
    """The three calls of diffusers' documentation."""
    request = REQUEST | change
    upsampling = {"adain_factor": 1.0, "tone_map_compression_ratio": 0.4}
    refinement = {"denoise_strength": 0.4, "num_inference_steps": 5}
    large = {"height": 128, "width": 192}
    coarse = condition.run_theirs(**request | {"output_type": "latent"})
    larger = upscaling.run_theirs(latents=coarse, output_type="latent", **upsampling)
    theirs = condition.run_theirs(**request | large | refinement, latents=larger)
    stages = {"downscale_factor": 0.5, **upsampling, **refinement}
    condition.assert_close(condition.run_ours(**request | large, second_stage=stages), theirs)
