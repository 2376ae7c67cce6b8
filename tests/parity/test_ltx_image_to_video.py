"""Image to video on LTX-Video: telecine makes the frames that `diffusers.LTXImageToVideoPipeline` makes.

Same source, same request, same seed, fp32. `Pair.assert_same` states the bounds (conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXImageToVideoPipeline
from diffusers.pipelines.ltx import pipeline_ltx_image2video

import telecine
from telecine.families.vae import DecodeSettings
from telecine.noise import SECOND_STREAM

# Neither image has the size of the clip, so both are resized: one grows, one shrinks, and both change their aspect.
IMAGE, OTHER = (
    np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)
    for seed, sides in enumerate([(40, 70), (100, 130)])
)
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "image": IMAGE,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
# diffusers takes one image for all videos, or one a video.
TWO = {"prompt": ["The old sailor walks through the quiet forest", "a blue cube"]}


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


@cases(
    {
        "as-is": {},
        "one-latent": {"num_frames": 1, "height": 32, "width": 32},
        "odd-latents": {"num_frames": 25, "height": 96, "width": 160},
        "one-image-for-two": TWO,
        "an-image-each": TWO | {"image": [IMAGE, OTHER]},
        "guidance-off": {"guidance_scale": 1.0},
        "rescaled": {"guidance_rescale": 0.7},
        "frame-rate": {"frame_rate": 24},
        "bytes": {"output_type": "uint8"},
        "latents-out": TWO | {"output_type": "latent"},
    }
)
def test_frames(image_pair: Any, change: dict[str, Any]) -> None:
    image_pair.assert_same(**REQUEST | change)


def test_a_decoder_without_timesteps(pairs_of: Callable[..., Any], plain_source: Path, plain_bundle: Path) -> None:
    pair = pairs_of(LTXImageToVideoPipeline, plain_source, plain_bundle)
    pair.assert_same(**REQUEST)
    # A list of seeds works in diffusers where the decoder draws no noise.
    pair.assert_same(**REQUEST | TWO | {"seed": [7, 3], "image": [IMAGE, OTHER]})


def test_given_latents_hold_the_first_frame(image_pair: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 12, 16), dtype=np.float32)
    request = REQUEST | TWO | {"latents": latents}
    del request["image"]
    image_pair.assert_same(**request)


def test_stochastic_sampling(pairs_of: Callable[..., Any], tiny_source: Path, tiny_bundle: Path) -> None:
    pair = pairs_of(LTXImageToVideoPipeline, tiny_source, tiny_bundle, stochastic_sampling=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SECOND_STREAM)
        pair.assert_same(**REQUEST | TWO | {"num_frames": 17})


def test_given_timesteps(image_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers raises on `timesteps`, since it passes its own sigmas with them: leave those out.
    original = pipeline_ltx_image2video.retrieve_timesteps
    monkeypatch.setattr(
        pipeline_ltx_image2video,
        "retrieve_timesteps",
        lambda *arguments, sigmas, **options: original(*arguments, **options),
    )
    image_pair.assert_same(**REQUEST | {"timesteps": [1000, 993, 909, 725, 421]})


def test_a_seed_per_video_and_one_image(image_pair: Any) -> None:
    # diffusers fails here twice over (one image, a generator list for the decoder's noise): each video alone is right.
    together = image_pair.run_ours(**REQUEST | {"num_videos_per_prompt": 2, "seed": [5, 6]})
    for index, seed in enumerate((5, 6)):
        image_pair.assert_close(together[index : index + 1], image_pair.run_theirs(**REQUEST | {"seed": seed}))


def test_no_image_is_text_to_video(image_pair: Any, pair: Any) -> None:
    request = {name: value for name, value in REQUEST.items() if name != "image"}
    np.testing.assert_array_equal(image_pair.run_ours(**request), pair.run_ours(**request))


def test_an_image_chooses_the_pipeline_in_a_bundle_of_another(image_pair: Any, pair: Any) -> None:
    np.testing.assert_array_equal(pair.run_ours(**REQUEST), image_pair.run_ours(**REQUEST))


@pytest.mark.parametrize("inputs", ["image", "conditions"])
def test_a_bundle_that_cannot_encode_says_so_before_it_runs(
    inputs: str, tiny_bundle: Path, edited_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    components = dict(telecine.Bundle.open(tiny_bundle).manifest.components)
    del components["vae_encoder"]
    given = {"image": IMAGE, "conditions": [telecine.Condition(image=IMAGE)]}
    request = {name: value for name, value in REQUEST.items() if name != "image"} | {inputs: given[inputs]}
    with telecine.load(edited_bundle(tiny_bundle, components=components)) as pipe:
        monkeypatch.setattr(pipe._models, "session", lambda *_: pytest.fail("a network was loaded"))
        with pytest.raises(telecine.BundleError, match="has no vae_encoder"):
            pipe.generate(**request)


def test_a_memory_limit_is_of_encoding_too(image_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's latents decode within a limit that its pixels do not encode in."""
    monkeypatch.setattr(image_pair.ours._models, "session", lambda *_: pytest.fail("a network was loaded"))
    monkeypatch.setattr(DecodeSettings, "of", lambda *_: None)
    with pytest.raises(telecine.RequestError, match="memory_limit is 1MiB"):
        image_pair.run_ours(**REQUEST, memory_limit="1MiB")
