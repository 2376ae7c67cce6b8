"""Text to video on LTX-Video: telecine, which has no torch, makes the frames that `diffusers.LTXPipeline` makes.

Same source, same request, same seed, fp32. `Pair.assert_same` states the bounds (conftest.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx import pipeline_ltx

import telecine
from telecine.errors import Cancelled
from telecine.noise import SECOND_STREAM

# One clip of 2 x 2 x 3 latents. Export traced 24 tokens, a text of 7 and latents of 3 x 4 x 5: none of them is here.
REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
TWO = {"prompt": ["The old sailor walks through the quiet forest", "a blue cube"]}
LONG = "Close-up shot: the camera pans over the snowy mountains, then zooms in! " * 12


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What telecine itself logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("telecine")]


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


def size(num_frames: int, height: int, width: int) -> dict[str, int]:
    return {"num_frames": num_frames, "height": height, "width": width}


@cases(
    {
        "as-is": {},
        "one-latent": size(1, 32, 32),
        "one-frame": size(1, 64, 160),
        "one-column": size(25, 96, 32),
        "wide": size(17, 32, 224),
        "odd-latents": size(25, 96, 160),
        "49-frames": size(49, 64, 64),
        "1100-tokens": size(81, 320, 320) | {"output_type": "latent"},  # as many as a real, short clip
        "batch-2": TWO,
        "batch-2-odd": TWO | size(17, 96, 160),
        "batch-3": {"prompt": ["a white circle", "", "the camera"]},
        "other-seed": {"seed": 1234567},
        "seed-beyond-32-bits": {"seed": 2**40 + 7},
    }
)
def test_sizes_batches_and_seeds(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


@cases(
    {
        "off": {"guidance_scale": 1.0},
        "below-1": {"guidance_scale": 0.5},
        "off-batch-2": TWO | {"guidance_scale": 1.0},
        "3": {"guidance_scale": 3.0},
        "7.5": {"guidance_scale": 7.5},
        "rescaled": {"guidance_rescale": 0.7},
        "rescaled-fully": {"guidance_scale": 7.5, "guidance_rescale": 1.0},
        "rescaled-per-video": TWO | {"guidance_rescale": 0.7},
        "negative": {"negative_prompt": "worst quality, blurry, jittery"},
        "negative-list": TWO | {"negative_prompt": ["worst quality", "blurry, jittery, distorted"]},
        "negative-without-guidance": {"negative_prompt": "worst quality", "guidance_scale": 1.0},
    }
)
def test_guidance(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


def test_one_negative_prompt_serves_all_prompts(pair: Any) -> None:
    # diffusers wants a list for a list of prompts; telecine repeats a string.
    request = REQUEST | TWO
    made = pair.run_ours(**request, negative_prompt="blurry")
    expected = pair.run_ours(**request, negative_prompt=["blurry", "blurry"])
    np.testing.assert_array_equal(made, expected)


@cases(
    {
        "empty": {"prompt": ""},
        "one-letter": {"prompt": "a"},
        "unknown-characters": {"prompt": "ein Übermaß 漢字 🎬"},
        "shorter-pads": {"max_sequence_length": 16},
        "77": {"max_sequence_length": 77},
        "longer-pads": {"max_sequence_length": 256},
        "only-the-end-token": {"prompt": "a red ball", "max_sequence_length": 1},
        "different-lengths": TWO | {"max_sequence_length": 40},
    }
)
def test_text(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


def test_too_long_a_prompt_is_cut_off_with_a_warning(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "telecine"):
        pair.assert_same(**REQUEST | {"prompt": LONG})
    (warning,) = warnings(caplog)
    assert "max_sequence_length=128" in warning
    assert "zooms in!" in warning  # the end of the prompt, which was lost


def embeddings(pair: Any, kind: str, texts: list[str], length: int) -> dict[str, np.ndarray]:
    """Arguments `{kind}_embeds` and `{kind}_attention_mask`, from diffusers' own encoder."""
    embeds, mask, *_ = pair.theirs.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
    return {f"{kind}_embeds": embeds.detach().numpy(), f"{kind}_attention_mask": mask.numpy()}


WITHOUT_PROMPT = {name: value for name, value in REQUEST.items() if name != "prompt"}


@pytest.mark.parametrize("length", [128, 21])
def test_embeddings_in_place_of_text(pair: Any, length: int) -> None:
    positive = embeddings(pair, "prompt", TWO["prompt"], length)
    negative = embeddings(pair, "negative_prompt", ["blurry", "worst quality"], length)
    pair.assert_same(**WITHOUT_PROMPT, **positive, **negative)


def test_embeddings_beside_a_negative_text(pair: Any) -> None:
    positive = embeddings(pair, "prompt", ["a blue cube"], 21)
    request = WITHOUT_PROMPT | positive | {"negative_prompt": "blurry"}
    # telecine encodes the text at the length of the embeddings; diffusers has to be told.
    pair.assert_close(pair.run_ours(**request), pair.run_theirs(**request, max_sequence_length=21))


def test_embeddings_alone(pair: Any) -> None:
    pair.assert_same(**WITHOUT_PROMPT, **embeddings(pair, "prompt", TWO["prompt"], 64), guidance_scale=1.0)


def test_several_videos_of_one_prompt(pair: Any) -> None:
    # diffusers fails on a single decode_timestep here: it makes a list as long as the prompts, not the videos.
    settings = {"decode_timestep": [0.05] * 2, "decode_noise_scale": [0.025] * 2}
    pair.assert_same(**REQUEST | settings, num_videos_per_prompt=2)
    once = pair.run_ours(**REQUEST, num_videos_per_prompt=2)
    listed = pair.run_ours(**REQUEST | settings, num_videos_per_prompt=2)
    np.testing.assert_array_equal(once, listed)


def test_several_videos_of_several_prompts(pair: Any) -> None:
    # diffusers repeats masks in another order than embeddings (a bug for prompts of unequal length). Four tokens are
    # fewer than either prompt has, so the masks are equal and the order of the embeddings is what counts.
    settings = {"decode_timestep": [0.05, 0.1, 0.15, 0.2], "decode_noise_scale": [0.025] * 4}
    pair.assert_same(**REQUEST | TWO | settings, num_videos_per_prompt=2, max_sequence_length=4)


@pytest.mark.parametrize("rate", [24, 25, 30.0, 23.976, 8])
def test_frame_rates(pair: Any, rate: float) -> None:
    pair.assert_same(**REQUEST, frame_rate=rate)


@cases(
    {
        "defaults": {"decode_timestep": 0.0, "decode_noise_scale": None},
        "scale-is-the-timestep": {"decode_timestep": 0.05, "decode_noise_scale": None},
        "scale-0": {"decode_timestep": 0.05, "decode_noise_scale": 0.0},
        "noise-alone": {"decode_timestep": 0.05, "decode_noise_scale": 1.0},
        "list-of-one": {"decode_timestep": [0.1], "decode_noise_scale": [0.05]},
        "per-video": TWO | {"decode_timestep": [0.05, 0.2], "decode_noise_scale": [0.3, 0.025]},
        "per-video-timestep-alone": TWO | {"decode_timestep": [0.05, 0.2], "decode_noise_scale": None},
        "one-for-two": TWO,
    }
)
def test_decoder_timesteps_and_noise(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


@cases({"one": {}, "two": TWO, "guidance-off": {"guidance_scale": 1.0}})
def test_a_decoder_without_timesteps(plain_pair, change: dict[str, Any]) -> None:
    # It draws no decode noise and ignores the two settings, like diffusers.
    plain_pair.assert_same(**REQUEST | change)


@cases(
    {
        "two-steps": {"num_inference_steps": 2},
        "nine-steps": {"num_inference_steps": 9},
    }
)
def test_steps(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


STATIC = {"use_dynamic_shifting": False, "shift_terminal": None}


@cases(
    {
        "static": STATIC,
        "static-3": STATIC | {"shift": 3.0},
        "static-terminal": STATIC | {"shift": 2.0, "shift_terminal": 0.2},
        "dynamic-without-terminal": {"shift_terminal": None},
        "dynamic-other-ends": {"base_shift": 0.5, "max_shift": 3.0, "base_image_seq_len": 4, "max_image_seq_len": 24},
        "dynamic-linear": {"time_shift_type": "linear"},
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "static-karras": STATIC | {"use_karras_sigmas": True},
        "static-exponential": STATIC | {"use_exponential_sigmas": True, "shift": 3.0},
    }
)
def test_schedulers(rescheduled: Callable[..., Any], change: dict[str, Any]) -> None:
    rescheduled(**change).assert_same(**REQUEST | {"num_inference_steps": 4})


def test_one_step_with_a_static_shift(rescheduled: Callable[..., Any]) -> None:
    rescheduled(**STATIC).assert_same(**REQUEST | {"num_inference_steps": 1})


@pytest.mark.parametrize("change", [{}, TWO], ids=["one", "two"])
def test_stochastic_sampling(rescheduled: Callable[..., Any], change: dict[str, Any]) -> None:
    # diffusers draws this noise from torch's global generator; telecine from the second stream of the same seed.
    pair = rescheduled(stochastic_sampling=True)
    request = REQUEST | change
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request["seed"] ^ SECOND_STREAM)
        pair.assert_same(**request)


def test_stochastic_sampling_gives_each_listed_seed_its_own_noise(rescheduled: Callable[..., Any]) -> None:
    # diffusers has no such thing (one global generator), so the oracle is the video made alone.
    pair = rescheduled(stochastic_sampling=True)
    together = pair.run_ours(**REQUEST | {"num_videos_per_prompt": 2, "seed": [5, 6]})
    for index, seed in enumerate((5, 6)):
        pair.assert_close(together[index : index + 1], pair.run_ours(**REQUEST | {"seed": seed}))


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning:diffusers")  # its shift of a timestep of 0
@pytest.mark.parametrize("settings", [{}, STATIC, {"shift_terminal": None}], ids=["tiny", "static", "no-terminal"])
@pytest.mark.parametrize(
    "timesteps",
    [[1000, 993, 987, 981, 975, 909, 725, 0.03], [1000, 909, 725, 421, 0], [993.5, 721.25]],
    ids=["distilled", "upscaling", "two"],
)
def test_given_timesteps(
    rescheduled: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    timesteps: list[float],
) -> None:
    # LTXPipeline raises on `timesteps`, since it passes its own sigmas with them: leave those out.
    original = pipeline_ltx.retrieve_timesteps

    def without_sigmas(*arguments: Any, sigmas: Any, **options: Any) -> Any:
        return original(*arguments, **options)

    monkeypatch.setattr(pipeline_ltx, "retrieve_timesteps", without_sigmas)
    rescheduled(**settings).assert_same(**REQUEST | {"timesteps": timesteps})


def test_a_seed_per_video(pair: Any) -> None:
    pair.assert_same(**REQUEST | TWO | {"seed": [7, 3]})


def test_frames_off_the_grid_are_floored_with_a_warning(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "telecine"):
        made = pair.run_ours(**REQUEST | {"num_frames": 16})
    pair.assert_close(made, pair.run_theirs(**REQUEST | {"num_frames": 16}))
    assert made.shape == (1, 9, 64, 96, 3)
    assert warnings(caplog) == ["num_frames 16 is not 8*k+1: making 9 frames"]


def test_given_latents(pair: Any) -> None:
    # They are taken as they are; the generator's first draw is then the decode noise.
    latents = np.random.default_rng(0).standard_normal((2, 12, 16), dtype=np.float32) * np.float32(1.5)
    pair.assert_same(**REQUEST | TWO, latents=latents)


@cases({"one": {}, "two": TWO})
def test_latents_are_packed_and_normalised(pair: Any, change: dict[str, Any]) -> None:
    # Latents have a deviation near 1, so the bounds on frames hold for them too.
    request = REQUEST | change | {"output_type": "latent"}
    pair.assert_same(**request)
    assert pair.run_ours(**request).shape == (1 + bool(change), 12, 16)


@cases({"one": {}, "two": TWO | size(17, 96, 64)})
def test_bytes_are_those_of_the_images_that_diffusers_gives(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change | {"output_type": "uint8"})


def test_a_callback_sees_each_step_and_may_return_new_latents(pair: Any) -> None:
    seen: list[tuple[int, int, float]] = []

    def ours(step: int, steps: int, sigma: float, latents: np.ndarray) -> np.ndarray | None:
        seen.append((step, steps, sigma))
        return latents[:, ::-1] * np.float32(0.5) if step == 1 else None

    def theirs(pipeline: Any, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"].flip(1) * 0.5} if step == 1 else {}

    pair.assert_close(pair.run_ours(**REQUEST, callback=ours), pair.run_theirs(**REQUEST, callback_on_step_end=theirs))
    sigmas = pair.theirs.scheduler.sigmas.numpy()
    assert seen == [(step, 3, float(sigmas[step])) for step in range(3)]


def test_a_callback_stops_the_run(pair: Any) -> None:
    steps: list[int] = []

    def stop(step: int, *unused: object) -> bool | None:
        steps.append(step)
        return False if step == 1 else None

    with pytest.raises(Cancelled, match="after step 2 of 3"):
        pair.run_ours(**REQUEST, callback=stop)
    assert steps == [0, 1]
    pair.assert_same(**REQUEST)  # the pipeline is free again


def test_a_repeated_run_gives_the_same_bits(pair: Any) -> None:
    first = pair.run_ours(**REQUEST)
    pair.run_ours(**REQUEST | TWO | {"seed": 9})  # other shapes in between: nothing of them stays
    np.testing.assert_array_equal(pair.run_ours(**REQUEST), first)


def test_a_clone_in_another_thread_gives_the_same_bits(pair: Any) -> None:
    requests = [REQUEST | {"seed": seed} for seed in (0, 1)]
    expected = [pair.run_ours(**request) for request in requests]
    made: dict[int, np.ndarray] = {}

    def run(index: int, pipeline: telecine.Pipeline) -> None:
        for _ in range(3):
            made[index] = pipeline.generate(**requests[index]).frames  # type: ignore[assignment]

    with pair.ours.clone() as clone:
        threads = [threading.Thread(target=run, args=each) for each in enumerate((pair.ours, clone))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in range(2):
        np.testing.assert_array_equal(made[index], expected[index])
