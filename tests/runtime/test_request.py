"""Every check of a request, and what layers, seeds and batches make of its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.errors import BundleError, RequestError
from telecine.families import FAMILIES
from telecine.noise import Generator
from telecine.request import MAX_COUNT, MAX_PIXELS, Request

DEFAULTS = FAMILIES["ltx-video"].pipelines["LTXPipeline"].defaults
EMBEDS, MASK = np.ones((2, 5, 4), np.float32), np.ones((2, 5), np.int64)


def request(*layers: dict[str, Any], **asked: Any) -> Request:
    if "prompt" not in asked and "prompt_embeds" not in asked:
        asked["prompt"] = "a fox"
    return Request.resolve(asked, *layers, DEFAULTS)


def with_embeds(**asked: Any) -> Request:
    return request(**{"prompt_embeds": EMBEDS, "prompt_attention_mask": MASK} | asked)


def test_the_first_layer_that_gives_a_value_wins() -> None:
    got = request({"height": 64, "width": 64, "frame_rate": 12.0}, height=32, width=None)
    assert (got.height, got.width, got.frame_rate, got.num_frames) == (32, 64, 12.0, 161)


def test_false_values_are_values() -> None:
    preset = {"negative_prompt": "blurry", "guidance_rescale": 0.7, "decode_timestep": 0.05}
    got = request(preset, negative_prompt="", guidance_rescale=0.0, decode_timestep=0.0)
    assert (got.negative_prompt, got.guidance_rescale, got.decode_timestep) == ("", 0.0, 0.0)


def test_a_number_of_steps_sets_a_presets_timesteps_aside() -> None:
    preset = {"timesteps": [1000, 500], "guidance_rescale": 0.7}
    got = request(preset, num_inference_steps=4)
    assert (got.num_inference_steps, got.timesteps, got.guidance_rescale) == (4, None, 0.7)
    assert request(preset).timesteps == [1000, 500]  # the default number of steps is not asked for


def test_a_preset_with_other_keys_is_the_bundles_fault() -> None:
    with pytest.raises(BundleError, match=r"a preset sets sharpness, zoom; expected parameters of generate: .*height"):
        request({"sharpness": 1.0, "zoom": 2})


@pytest.mark.parametrize("name", ["frame_rate", "guidance_scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "3", True, 1j, [[3.0]], [], 10**400, 1e39])
def test_numbers_are_finite_as_float32(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*; expected a finite number"):
        request(**{name: value})


@pytest.mark.parametrize("value", [1, 3.5, -2.0, np.float32(3), np.int64(3)])
def test_numbers_of_every_kind_are_taken(value: Any) -> None:
    assert request(guidance_scale=value).guidance_scale == value


@pytest.mark.parametrize("value", [0, -1, -0.0])
def test_a_frame_rate_is_above_0(value: float) -> None:
    with pytest.raises(RequestError, match="frame_rate is .*; expected above 0"):
        request(frame_rate=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, "0.7", True])
def test_rescale_is_a_fraction(value: Any) -> None:
    with pytest.raises(RequestError, match="guidance_rescale is .*; expected a number from 0 to 1"):
        request(guidance_rescale=value)


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf, "1", True, [1.0, -1.0], [], [[1.0]]])
def test_a_scale_of_spatio_temporal_guidance_is_not_negative(value: Any) -> None:
    with pytest.raises(RequestError, match="stg_scale is .*; expected a number from 0, or a list of such"):
        request(stg_scale=value)


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale", "stg_scale"])
@pytest.mark.parametrize("value", [[0.5, 1, 0], (0.25,), np.array([0.5, 1.0])])
def test_scales_may_be_lists(name: str, value: Any) -> None:
    assert getattr(request(**{name: value}), name) is value


@pytest.mark.parametrize("value", [[0.7, 1.5], [0.7, np.nan], [0.7, "1"], [0.7, None]])
def test_every_value_of_a_list_is_checked(value: Any) -> None:
    with pytest.raises(RequestError, match="guidance_rescale is .*; expected a number from 0 to 1, or a list of such"):
        request(guidance_rescale=value)


@pytest.mark.parametrize("value", ["stg_av", "", 1, "Attention_Values"])
def test_an_unknown_mode_lists_the_known_ones(value: Any) -> None:
    expected = "expected one of attention_values, attention_skip, transformer_block"
    with pytest.raises(RequestError, match=f"stg_mode is {value!r}; {expected}"):
        request(stg_mode=value)


def test_the_residual_mode_is_refused_with_its_reason() -> None:
    with pytest.raises(RequestError, match=r"stg_mode is 'residual'.* has no residual of its own .*change nothing"):
        request(stg_mode="residual")


@pytest.mark.parametrize("value", [1, "yes", 0.5])
def test_cfg_star_is_a_switch(value: Any) -> None:
    with pytest.raises(RequestError, match="cfg_star is .*; expected True or False"):
        request(cfg_star=value)


@pytest.mark.parametrize("value", [19, "19", [1.5], [True], ["1"], [[1], 2], [1, [2]], [[[1]]], [[1.0]], [None], {1}])
def test_blocks_are_indexes_in_a_list_or_lists_of_them(value: Any) -> None:
    with pytest.raises(RequestError, match="stg_blocks is .*; expected a list of block indexes, or a list of such"):
        request(stg_blocks=value)


@pytest.mark.parametrize("value", [[], [19], (1, 2), range(3), np.array([1]), [[], [1, 2]], [(1,), np.array([2])]])
def test_blocks_come_in_any_list(value: Any) -> None:
    assert request(stg_blocks=value).stg_blocks is value


@pytest.mark.parametrize("value", [0.5, "1", [0.5, 0.5], [0.5, 0.9], [1.1], [-0.1], [np.nan], ["1"], [[1.0]], [True]])
def test_sigmas_of_guidance_descend(value: Any) -> None:
    with pytest.raises(RequestError, match="guidance_sigmas is .*; expected strictly descending numbers from 1 to 0"):
        request(guidance_sigmas=value)


@pytest.mark.parametrize("value", [[], [1.0], [1, 0.5, 0], (0.9, 0.1), np.array([0.5, 0.25])])
def test_sigmas_of_guidance_come_in_any_list(value: Any) -> None:
    assert request(guidance_sigmas=value).guidance_sigmas is value


@pytest.mark.parametrize("name", ["num_inference_steps", "num_videos_per_prompt", "max_sequence_length"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, np.nan, MAX_COUNT + 1, 10**30])
def test_counts_are_whole_and_of_this_world(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*; expected a whole number from 1 to {MAX_COUNT}"):
        request(**{name: value})


def test_counts_may_be_numpys() -> None:
    assert request(num_videos_per_prompt=np.int32(3)).videos == 3


@pytest.mark.parametrize("value", ["mp4", "pil", "pt", "NP", "", 3])
def test_an_unknown_output_type_lists_the_known_ones(value: Any) -> None:
    with pytest.raises(RequestError, match=f"output_type is {value!r}; expected one of np, uint8, latent"):
        request(output_type=value)


@pytest.mark.parametrize("sizes", [{"height": 2**41}, {"num_frames": 10**30}, {"height": 2**20, "width": 2**20}])
def test_sizes_that_overflow_an_array_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=f"at most {MAX_PIXELS} pixels in all"):
        request(**sizes)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ({"prompt": None}, "neither given"),
        ({"prompt": "a", "prompt_embeds": EMBEDS, "prompt_attention_mask": MASK}, "prompt and prompt_embeds given"),
    ],
)
def test_prompt_or_embeds_not_both_not_neither(asked: dict[str, Any], got: str) -> None:
    with pytest.raises(RequestError, match=f"{got}; expected one of prompt and prompt_embeds"):
        request(**asked)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("value", [3, [], (), [3], ["a", None], b"a", {"a": 1}, [["a"]]])
def test_texts_are_strings(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*; expected a string or a list of strings"):
        request(**{name: value})


def test_empty_prompts_are_prompts() -> None:
    assert request(prompt="").prompts == 1
    assert request(prompt=["", ""]).prompts == 2


@pytest.mark.parametrize("negative", [["a"], ["a", "b", "c"]])
def test_negative_prompts_are_one_or_one_each(negative: list[str]) -> None:
    with pytest.raises(RequestError, match=f"{len(negative)} negative prompts for 2 prompts"):
        request(prompt=["x", "y"], negative_prompt=negative)
    with pytest.raises(RequestError, match=f"{len(negative)} negative prompts for 2 prompts"):
        with_embeds(negative_prompt=negative)
    assert request(prompt=["x", "y"], negative_prompt=["a", "b"]).negative_prompt == ["a", "b"]


@pytest.mark.parametrize("kind", ["prompt", "negative_prompt"])
def test_embeds_and_mask_come_together(kind: str) -> None:
    asked = {"prompt": ["a", "b"]} if kind == "negative_prompt" else {}
    with pytest.raises(RequestError, match=f"{kind}_embeds without {kind}_attention_mask; expected both, or neither"):
        request(**asked, **{f"{kind}_embeds": EMBEDS})
    with pytest.raises(RequestError, match=f"{kind}_attention_mask without {kind}_embeds; expected both, or neither"):
        request(prompt="a", **{f"{kind}_attention_mask": MASK})


@pytest.mark.parametrize("shape", [(), (4,), (5, 4), (2, 5, 4, 1), (0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_embeds_have_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"prompt_embeds have shape \(.*own text encoder"):
        with_embeds(prompt_embeds=np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(), (2,), (2, 4), (1, 5), (2, 5, 1)])
def test_a_mask_has_the_shape_of_its_embeds(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"prompt_attention_mask has shape .*; expected \(2, 5\), as its embeddings"):
        with_embeds(prompt_attention_mask=np.ones(shape, np.float32))


def test_embeds_have_the_models_channels() -> None:
    assert with_embeds().embeds("prompt", 4) is not None
    with pytest.raises(RequestError, match=r"prompt_embeds have shape \(2, 5, 4\); expected \(2, L, 8\)"):
        with_embeds().embeds("prompt", 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("name", ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds"])
@pytest.mark.filterwarnings("error")
def test_embeds_and_masks_are_finite(name: str, bad: float) -> None:
    arrays = {"negative_prompt_embeds": EMBEDS, "negative_prompt_attention_mask": MASK}
    arrays |= {"prompt_embeds": EMBEDS, "prompt_attention_mask": MASK}
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name][1, 2] = bad
    with pytest.raises(RequestError, match=f"{name} holds NaN or infinity"):
        request(**arrays)


def test_negative_embeds_fit_the_prompt() -> None:
    negative = {"negative_prompt_embeds": EMBEDS, "negative_prompt_attention_mask": MASK}
    assert with_embeds(**negative).embeds("negative_prompt", 4) is not None
    with pytest.raises(RequestError, match=r"negative_prompt_embeds have shape \(2, 5, 4\); expected \(1, L"):
        request(prompt="one", **negative)
    with pytest.raises(
        RequestError, match="negative_prompt_embeds have a text length of 5; expected 128, as the prompt"
    ):
        request(prompt=["one", "two"], **negative)
    assert request(prompt=["one", "two"], max_sequence_length=5, **negative).prompts == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, bool])
def test_embeds_become_float32(dtype: Any) -> None:
    pair = with_embeds(prompt_embeds=EMBEDS.astype(dtype), prompt_attention_mask=MASK.astype(dtype)).embeds("prompt", 4)
    assert pair is not None
    np.testing.assert_array_equal(pair[0], EMBEDS)
    np.testing.assert_array_equal(pair[1], MASK)
    assert {array.dtype for array in pair} == {np.dtype(np.float32)}


def test_float32_embeds_are_not_copied() -> None:
    pair = with_embeds().embeds("prompt", 4)
    assert pair is not None
    assert np.shares_memory(pair[0], EMBEDS)


class Elsewhere:
    """A tensor on a device, as NumPy meets it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize("name", ["prompt_embeds", "prompt_attention_mask", "latents"])
@pytest.mark.parametrize("value", [Elsewhere(), "text", [[1], [1, 2]], [None], np.array(["a"]), np.array([1j])])
def test_what_is_no_array_of_numbers_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} (is no array|holds)"):
        with_embeds(**{name: value})


def test_lists_are_arrays_too() -> None:
    pair = request(prompt_embeds=EMBEDS.tolist(), prompt_attention_mask=MASK.tolist()).embeds("prompt", 4)
    assert pair is not None
    np.testing.assert_array_equal(pair[0], EMBEDS)


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_batch_is_prompts_times_videos(prompts: int, each: int) -> None:
    got = request(prompt=["x"] * prompts, num_videos_per_prompt=each)
    assert (got.prompts, got.videos) == (prompts, prompts * each)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_per_video_repeats_each_prompts_value(prompts: int, each: int, data: st.DataObject) -> None:
    got = request(prompt=["x"] * prompts, num_videos_per_prompt=each)
    count = data.draw(st.sampled_from([1, prompts, prompts * each]))
    values = data.draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    expected = [values[video * count // got.videos] for video in range(got.videos)]
    result = got.per_video("decode_timestep", values)
    assert result.dtype == np.float32
    assert result.tolist() == expected
    np.testing.assert_array_equal(got.per_video("decode_timestep", values[0]), np.float32([values[0]] * got.videos))


@pytest.mark.parametrize(
    "value", [[], [1, 2, 3], [[1, 2]], [[1, 2], [3, 4]], np.nan, [0.1, np.inf], "0.05", None, [[1], 2]]
)
def test_per_video_refuses_other_counts_and_values(value: Any) -> None:
    got = request(prompt=["x", "y"], num_videos_per_prompt=2)
    with pytest.raises(RequestError, match="decode_timestep"):
        got.per_video("decode_timestep", value)


def test_per_video_says_which_counts_it_takes() -> None:
    with pytest.raises(RequestError, match="expected a finite number, or a list of 1 or 2 or 4"):
        request(prompt=["x", "y"], num_videos_per_prompt=2).per_video("decode_timestep", [1, 2, 3])


@pytest.mark.parametrize(
    ("seed", "seeds"), [(0, (0,)), (5, (5,)), ([5], (5,)), ((5,), (5,)), ([1, 2], (1, 2)), (range(2), (0, 1))]
)
def test_seeds_are_one_or_one_a_video(seed: Any, seeds: tuple[int, ...]) -> None:
    assert request(prompt=["x", "y"], seed=seed).seeds() == seeds


@pytest.mark.parametrize("seed", [[], [1, 2, 3]])
def test_other_counts_of_seeds_are_refused(seed: list[int]) -> None:
    with pytest.raises(RequestError, match=f"{len(seed)} seeds; expected one, or 2: one a video"):
        request(prompt=["x", "y"], seed=seed).seeds()


def test_no_seed_is_a_fresh_one_that_can_be_given_again() -> None:
    seeds = {request(seed=None).seeds() for _ in range(20)}
    assert len(seeds) == 20
    for (seed,) in seeds:
        assert 0 <= seed < 2**32
        assert request(seed=(seed,)).seeds() == (seed,)


@pytest.mark.parametrize("seed", ["5", "1234", 1.5, True, np.array([1, 2])])
def test_a_seed_that_is_no_integer_is_refused_by_the_generator(seed: Any) -> None:
    (only,) = request(seed=seed).seeds()
    with pytest.raises(RequestError, match="seed is"):
        Generator(only)
