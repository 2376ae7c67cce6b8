"""Tensors of Triton's clients to parameters of `generate`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from triton_requests import Tensors, as_json, floats, ints, pixels, text

from telecine.errors import RequestError
from telecine.pipeline import Pipeline
from telecine.serving.triton.inputs import INPUTS, parameters

# Inputs that are a part of another one: what one tensor cannot say.
PARTS = {"condition_frames", "latents_shape"}


def test_every_parameter_of_generate_has_an_input_and_nothing_else_has() -> None:
    """A callback is what progress responses are."""
    names = [entry.name for entry in INPUTS]
    assert len(set(names)) == len(names)
    assert set(names) - PARTS == set(inspect.signature(Pipeline.generate).parameters) - {"self", "callback"}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"prompt": text("a bäll")}, {"prompt": "a bäll"}),
        ({"negative_prompt": text("a", "b")}, {"negative_prompt": ["a", "b"]}),
        ({"height": ints(64), "frame_rate": floats(24.1)}, {"height": 64, "frame_rate": 24.1}),
        ({"timesteps": floats(900), "guidance_sigmas": floats(1)}, {"timesteps": [900.0], "guidance_sigmas": [1.0]}),
        ({"guidance_scale": floats(3.1), "seed": ints(7)}, {"guidance_scale": 3.1, "seed": 7}),
        ({"guidance_scale": floats(3.1, 2), "seed": ints(7, -8)}, {"guidance_scale": [3.1, 2.0], "seed": [7, -8]}),
        ({"cfg_star": np.array([True])}, {"cfg_star": True}),
        ({"stg_blocks": as_json([[1], []])}, {"stg_blocks": [[1], []]}),
        ({"second_stage": as_json({"timesteps": [909, 725]})}, {"second_stage": {"timesteps": [909, 725]}}),
        ({"prompt": text()}, {"prompt": []}),
        ({}, {}),
    ],
)  # fmt: skip
def test_tensors_become_plain_values(tensors: Tensors, expected: dict[str, Any]) -> None:
    made = parameters(tensors)
    assert made == expected
    assert {type(value) for value in made.values()} == {type(value) for value in expected.values()}


def test_images_are_one_for_all_or_one_a_video() -> None:
    one, two = pixels(0, 1, 4, 6), pixels(1, 2, 4, 6)
    np.testing.assert_array_equal(parameters({"image": one})["image"], one[0])
    several = parameters({"image": two})["image"]
    assert isinstance(several, list)
    np.testing.assert_array_equal(several, two)


def test_conditions_name_their_frames() -> None:
    frames = pixels(0, 5, 4, 6)
    described = [{"image": 4}, {"video": [1, 4], "frame_index": 16, "strength": 0.5}]
    image, video = parameters({"conditions": as_json(described), "condition_frames": frames})["conditions"]
    np.testing.assert_array_equal(image.image, frames[4])
    np.testing.assert_array_equal(video.video, frames[1:4])
    assert (image.frame_index, image.strength, video.frame_index, video.strength) == (0, 1.0, 16, 0.5)


def test_latents_get_their_shape() -> None:
    latents = np.arange(24, dtype=np.float32)
    made = parameters({"latents": latents, "latents_shape": ints(1, 4, 6)})
    np.testing.assert_array_equal(made.pop("latents"), latents.reshape(1, 4, 6))
    assert made == {}


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "image", "condition_frames"])
def test_no_array_is_a_view_of_triton_s_memory(name: str) -> None:
    """Triton reuses it for the next request."""
    dims = {entry.name: entry.dims for entry in INPUTS}
    kinds = {"image": np.uint8, "condition_frames": np.uint8}
    tensor = np.ones([3 if size == 3 else 2 for size in dims[name]], kinds.get(name, np.float32))
    tensors = {name: tensor, "latents_shape": ints(2)} if name == "latents" else {name: tensor}
    if name == "condition_frames":
        tensors["conditions"] = as_json([{"video": [0, 2]}])
    (made,) = parameters(tensors).values()
    tensor[:] = 0
    held = [each.video for each in made] if name == "condition_frames" else made
    assert np.all(np.asarray(held) == 1)


ONE_FRAME = {"condition_frames": pixels(0, 1, 4, 4)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt": np.array([b"\xff"], object)}, "prompt is not UTF-8"),
        ({"stg_blocks": text("[[")}, "stg_blocks is '[[', which is not JSON"),
        ({"stg_blocks": text("[" * 100_000)}, "which is not JSON"),
        ({"second_stage": text("no")}, "Use {} for the defaults"),
        ({"latents_shape": ints(1)}, "latents_shape alone; expected latents and latents_shape"),
        ({"latents": np.ones(6, np.float32), "latents_shape": ints(-2, -3)}, "latents_shape is [-2, -3] for 6"),
        ({"latents": np.ones(6, np.float32), "latents_shape": ints()}, "latents_shape is [] for 6"),
        ({"latents": np.ones(0, np.float32), "latents_shape": ints(2**32, 2**32)}, "for 0 latents"),
        (ONE_FRAME, "condition_frames alone"),
        (ONE_FRAME | {"conditions": as_json({"image": 0})}, "conditions is {'image': 0}; expected a list of objects"),
        (ONE_FRAME | {"conditions": as_json([0])}, "conditions is [0]; expected a list of objects"),
        (ONE_FRAME | {"conditions": as_json([{"images": 0}])}, "a condition with images; expected"),
        (ONE_FRAME | {"conditions": as_json([{"image": 1}])}, "stands at 1 of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{"image": -1}])}, "stands at -1 of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{"image": True}])}, "stands at True of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{"video": 0}])}, "stands at None of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{"video": [1, 1]}])}, "stands at 1 of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{"video": [0, 2]}])}, "stands at 2 of condition_frames"),
        (ONE_FRAME | {"conditions": as_json([{}])}, "neither an image nor a video"),
        (ONE_FRAME | {"conditions": as_json([{"image": 0, "frame_index": None}])}, "frame_index is None"),
    ],
)
def test_what_is_wrong_is_said(tensors: Tensors, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parameters(tensors)
    assert message in str(caught.value)
