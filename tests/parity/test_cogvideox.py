"""CogVideoX: telecine makes the frames that diffusers' three pipelines make, in the style of every release.

Same source, same request, same seed, fp32, T5 and networks in evaluation mode, CogVideoX' own schedulers.
`Pair.assert_same` states the bounds (conftest.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from diffusers import CogVideoXVideoToVideoPipeline

from telecine.errors import RequestError

# Unequal sides, so that none can stand for another.
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "negative_prompt": "worst quality, blurry",
    "height": 48,
    "width": 80,
    "num_frames": 9,
    "num_inference_steps": 3,
    "seed": 0,
}
TWO: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "The old sailor walks through the quiet forest"],
    "negative_prompt": ["blurry", "jittery"],
}
# Neither image has the size of the clip: both are resized.
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)
    for seed, sides in enumerate([(40, 70), (100, 130)])
]
LEARNED = {"height": 64, "width": 96}  # the one size of 5b-I2V's table; its length is 9 frames
VIDEO_TO_VIDEO = {name: value for name, value in REQUEST.items() if name != "num_frames"}


def clip(frames: int) -> np.ndarray:
    """(frames, 40, 72, 3) bytes: a gradient that moves, of another size than the request."""
    rows, columns = np.mgrid[0:40, 0:72]
    pixels = [np.stack([rows * 6, columns * 3 + 5 * index, rows + columns + 9 * index], -1) for index in range(frames)]
    return np.stack(pixels).astype(np.uint8)


@pytest.mark.parametrize(
    ("style", "scheduler"),
    [
        ("2b", "ddim"),
        ("5b", "ddim"),
        ("5b", "dpm"),
        ("1.5-5b", "ddim"),
        pytest.param("2b", "dpm", marks=pytest.mark.slow),
        pytest.param("1.5-5b", "dpm", marks=pytest.mark.slow),
    ],
)
class TestTextToVideo:
    @pytest.mark.parametrize("frames", [9, 5, 1], ids=["3-latents", "2-latents", "1-latent"])
    def test_lengths(self, cogvideox_pair: Callable[..., Any], style: str, scheduler: str, frames: int) -> None:
        cogvideox_pair(style, scheduler).assert_same(**REQUEST | {"num_frames": frames})

    def test_dynamic_guidance_a_batch_and_its_seeds(
        self, cogvideox_pair: Callable[..., Any], style: str, scheduler: str
    ) -> None:
        request = REQUEST | TWO | {"seed": [3, 8], "use_dynamic_cfg": True, "num_inference_steps": 4}
        cogvideox_pair(style, scheduler).assert_same(**request)


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 17},  # 5 latents: two chunks, one with caches
        {"num_frames": 21},  # 6 latents, all chunks even
        {"guidance_scale": 1},
        {"guidance_scale": 0.5, "use_dynamic_cfg": True},
        {"num_inference_steps": 1},
        {"num_inference_steps": 7},  # the last step does not end at no noise
        {"height": 80, "width": 48},
        {"height": 16, "width": 16},
        {"output_type": "latent"},
        {"output_type": "uint8"},
        {**TWO, "seed": 5, "num_frames": 13},
        {"negative_prompt": None, "prompt": ""},
    ],
    ids=str,
)
def test_a_video_from_text(cogvideox_pair: Callable[..., Any], change: dict[str, Any]) -> None:
    cogvideox_pair("5b", "dpm").assert_same(**REQUEST | change)


@pytest.mark.parametrize("frames", [9, 13], ids=["odd", "even"])
def test_latents_of_1_5_keep_the_frames_that_are_dropped(cogvideox_pair: Callable[..., Any], frames: int) -> None:
    pair = cogvideox_pair("1.5-5b")
    request = REQUEST | {"num_frames": frames, "output_type": "latent"}
    assert pair.run_ours(**request).shape[1] == 4
    pair.assert_same(**request)


@pytest.mark.parametrize("style", ["2b", "1.5-5b"])
def test_given_latents_are_used_as_they_are(cogvideox_pair: Callable[..., Any], style: str) -> None:
    shape = (1, 4 if style == "1.5-5b" else 3, 4, 6, 10)
    latents = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    cogvideox_pair(style).assert_same(**REQUEST | {"latents": latents})


def test_given_embeddings_stand_for_text(cogvideox_pair: Callable[..., Any]) -> None:
    random = np.random.default_rng(2)
    embeds = {
        name: random.standard_normal((1, 226, 32), dtype=np.float32)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    request = {name: value for name, value in REQUEST.items() if "prompt" not in name}
    cogvideox_pair("2b").assert_same(**request, **embeds)


@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("dpm", marks=pytest.mark.slow)])
class TestImageToVideo:
    def test_learned_positions(self, cogvideox_pair: Callable[..., Any], scheduler: str) -> None:
        cogvideox_pair("5b-I2V", scheduler).assert_same(**REQUEST | LEARNED | {"image": IMAGES[0]})

    @pytest.mark.parametrize("frames", [9, 13], ids=["odd", "even"])
    def test_1_5_tells_an_offset(self, cogvideox_pair: Callable[..., Any], scheduler: str, frames: int) -> None:
        request = REQUEST | {"num_frames": frames, "image": IMAGES[1], "use_dynamic_cfg": True}
        cogvideox_pair("1.5-5b-I2V", scheduler).assert_same(**request)

    @pytest.mark.parametrize("seed", [4, [4, 9]], ids=["one-seed", "two-seeds"])
    def test_a_batch(self, cogvideox_pair: Callable[..., Any], scheduler: str, seed: Any) -> None:
        request = REQUEST | TWO | LEARNED | {"image": IMAGES, "seed": seed}
        cogvideox_pair("5b-I2V", scheduler).assert_same(**request)


@pytest.mark.parametrize(
    ("style", "scheduler", "change"),
    [
        ("5b", "ddim", {"video": clip(9)}),
        ("5b", "dpm", {"video": clip(9), "strength": 0.5, "num_inference_steps": 6}),
        ("5b", "dpm", {"video": clip(21), "strength": 1.0, "num_inference_steps": 2}),
        ("2b", "ddim", {"video": clip(16), "use_dynamic_cfg": True, "num_inference_steps": 5}),
        ("2b", "dpm", {"video": clip(8), "strength": 0.4, "num_inference_steps": 5}),
        ("2b", "dpm", {"video": clip(1)}),
        ("1.5-5b", "ddim", {"video": clip(13)}),  # of an even number of latents, as diffusers requires
        ("5b", "ddim", {**TWO, "video": clip(5), "seed": 6}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}" for k in value),
)
def test_video_to_video(cogvideox_pair: Callable[..., Any], style: str, scheduler: str, change: dict[str, Any]) -> None:
    cogvideox_pair(style, scheduler, CogVideoXVideoToVideoPipeline).assert_same(**VIDEO_TO_VIDEO | change)


def test_given_latents_in_video_to_video(cogvideox_pair: Callable[..., Any]) -> None:
    pair = cogvideox_pair("5b", "ddim", CogVideoXVideoToVideoPipeline)
    latents = np.random.default_rng(3).standard_normal((1, 3, 4, 6, 10), dtype=np.float32)
    request = VIDEO_TO_VIDEO | {"latents": latents, "strength": 0.7, "num_inference_steps": 4}
    pair.assert_close(pair.run_ours(**request, pipeline="CogVideoXVideoToVideoPipeline"), pair.run_theirs(**request))


@contextmanager
def diffusers_tiling(vae: Any, **sizes: int) -> Iterator[None]:
    kept = {name: value for name, value in vars(vae).items() if name.startswith("tile_")}
    vae.enable_tiling(**sizes)
    try:
        yield
    finally:
        vae.disable_tiling()
        vars(vae).update(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 96, "width": 160},  # two tiles along each side
        {"height": 112, "width": 48, "num_frames": 17},  # along one
        {"height": 48, "width": 80},  # none: one tile is the picture
    ],
    ids=str,
)
def test_tiles_are_diffusers(cogvideox_pair: Callable[..., Any], change: dict[str, Any]) -> None:
    pair = cogvideox_pair("5b")
    with diffusers_tiling(pair.theirs.vae):
        theirs = pair.run_theirs(**REQUEST | change)
    pair.assert_close(pair.run_ours(**REQUEST | change, tiling="diffusers"), theirs)


def test_a_video_is_encoded_in_diffusers_tiles(cogvideox_pair: Callable[..., Any]) -> None:
    pair = cogvideox_pair("5b", "ddim", CogVideoXVideoToVideoPipeline)
    request = VIDEO_TO_VIDEO | {"video": clip(9), "height": 96, "width": 96, "strength": 0.4}
    with diffusers_tiling(pair.theirs.vae):
        theirs = pair.run_theirs(**request)
    pair.assert_close(pair.run_ours(**request, tiling="diffusers"), theirs)


def test_a_memory_limit_chooses_tiles_that_are_still_the_video(cogvideox_pair: Callable[..., Any]) -> None:
    pair = cogvideox_pair("5b")
    request = REQUEST | {"height": 192, "width": 160, "num_inference_steps": 1}
    with pytest.raises(RequestError, match="memory_limit is 1MiB; expected at least (.*) here"):
        pair.run_ours(**request, memory_limit="1MiB")
    whole = pair.run_ours(**request)
    tiled = pair.run_ours(**request, memory_limit="160MB")
    difference = np.abs(whole - tiled)
    assert difference.max() > 1e-3  # it acted: group norms see a tile
    assert difference.mean() < 0.1


def test_a_stream_hands_out_chunks(cogvideox_pair: Callable[..., Any]) -> None:
    ours = cogvideox_pair("5b").ours
    request = REQUEST | {"num_frames": 25}
    pieces = list(ours.stream(**request))
    assert [piece.shape[1] for piece in pieces] == [9, 8, 8]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), ours.generate(**request).frames)


# What diffusers does not do, or does wrong without a word.


def test_several_videos_a_prompt_where_diffusers_makes_one(cogvideox_pair: Callable[..., Any]) -> None:
    pair = cogvideox_pair("2b")
    both = pair.run_ours(**REQUEST | {"num_videos_per_prompt": 2, "seed": [0, 7]})
    pair.assert_close(both[1:], pair.run_theirs(**REQUEST | {"seed": 7}))


def test_one_image_serves_a_batch(cogvideox_pair: Callable[..., Any]) -> None:
    pair = cogvideox_pair("5b-I2V")
    request = REQUEST | TWO | LEARNED | {"seed": [4, 9]}
    np.testing.assert_array_equal(
        pair.run_ours(**request, image=IMAGES[0]), pair.run_ours(**request, image=[IMAGES[0], IMAGES[0]])
    )


@pytest.mark.parametrize(
    ("style", "change", "message"),
    [
        ("5b", {"height": 24}, "height is 24; expected a positive multiple of 16"),
        ("5b", {"num_inference_steps": 61}, "num_inference_steps is 61; expected a number whose trailing timesteps"),
        ("5b", {"image": IMAGES[0]}, "an image for a model that takes no image"),
        ("5b-I2V", LEARNED, "no image; expected the image that the video begins with"),
        ("5b-I2V", LEARNED | {"pipeline": "CogVideoXPipeline"}, "no image for a model that takes an image"),
        ("5b-I2V", {"image": IMAGES[0]}, "80 x 48 pixels; expected 3 of 96 x 64, which its learned positions"),
        ("5b-I2V", LEARNED | {"image": IMAGES[0], "num_frames": 13}, "4 latent frames .*; expected 3"),
        ("5b-I2V", LEARNED | {"image": IMAGES}, "2 images; expected 1"),
        ("5b-I2V", LEARNED | {"image": IMAGES[0], "max_sequence_length": 64}, "a text length of 64; expected 226"),
        ("1.5-5b", {"height": 176}, "a video of 80 x 176 pixels; expected at most 192 x 160"),
        ("5b", {"latents": np.zeros((1, 4, 3, 6, 10), np.float32)}, "latents have shape .*; expected .1, 3, 4, 6, 10"),
        ("5b", {"latents": np.full((1, 3, 4, 6, 10), np.nan, np.float32)}, "latents hold NaN"),
        ("5b", {"guidance_rescale": 0.5}, "guidance_rescale for a cogvideox model"),
        ("5b", {"second_stage": {}}, "second_stage with a model of a family without latent upsamplers"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    cogvideox_pair: Callable[..., Any], style: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        cogvideox_pair(style).run_ours(**REQUEST | change)


@pytest.mark.parametrize(
    ("style", "change", "message"),
    [
        ("5b", {"video": clip(7)}, "a video of 7 frames; expected a multiple of 4, or one more.*Use the first 5"),
        ("1.5-5b", {"video": clip(9)}, "a video of 3 latent frames; expected a multiple of 2"),
        ("5b", {"video": clip(9), "strength": 0.1}, "a strength of 0.1 of 3 steps"),
        ("5b", {"video": clip(9), "latents": np.zeros((1, 3, 4, 6, 10), np.float32)}, "a video and latents"),
        ("5b", {"pipeline": "CogVideoXVideoToVideoPipeline"}, "neither a video nor latents"),
        ("5b", {"video": clip(9), "num_frames": 9}, "num_frames for CogVideoXVideoToVideoPipeline"),
    ],
    ids=str,
)
def test_videos_that_cannot_be_are_refused(
    cogvideox_pair: Callable[..., Any], style: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        cogvideox_pair(style).run_ours(**VIDEO_TO_VIDEO | change)


def test_upscaling_is_refused(cogvideox_pair: Callable[..., Any]) -> None:
    with pytest.raises(RequestError, match="upscale with a model of a family without latent upsamplers"):
        cogvideox_pair("5b").ours.upscale(latents=np.zeros((1, 4, 3, 6, 10), np.float32))


SCRIPT = """
import json, sys
import numpy as np
import telecine
from telecine.backends.onnxruntime import OnnxRuntimeOptions

def peak():
    # Not ru_maxrss: a process that was started inherits the peak of the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024

def make(pipe, side, **more):
    return pipe.generate(
        prompt_embeds=np.zeros((1, 4, 32), np.float32), num_inference_steps=1, guidance_scale=1, num_frames=17,
        output_type="uint8", height=side, width=side, **more
    ).frames

with telecine.load(sys.argv[1], options=OnnxRuntimeOptions(threads=1)) as pipe:
    make(pipe, 16)
    before = peak()
    make(pipe, 320, **json.loads(sys.argv[2]))
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_stays_within_its_limit(
    cogvideox: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    """Of the tiny model, whose transformer is small beside its VAE, in a process of its own."""
    limit = 700 * 2**20

    def growth(**limited: int) -> int:
        command = [sys.executable, "-c", SCRIPT, str(cogvideox("2b")[1]), json.dumps(limited)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    tiled, untiled = growth(memory_limit=limit), growth()
    record_property("measured", f"CogVideoX: {tiled / 2**20:.0f} MiB of a limit of 700, {untiled / 2**20:.0f} untiled")
    assert tiled <= limit < untiled
