"""From ranges of axes to optimisation profiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.axes import bind_axes
from telecine.engine import Range
from telecine.errors import EngineError
from telecine.manifest import TensorSpec
from telecine.workload import AxisRange, AxisRanges
from telecine_engines.profiles import BAND, plan_profiles

TOKENS = TensorSpec(name="hidden_states", dtype="float32", shape=("batch", "tokens", 128))
MASK = TensorSpec(name="mask", dtype="float32", shape=("batch", "text_length"))
VIDEO = TensorSpec(name="video", dtype="float32", shape=("batch", 3, "8*latent_frames-7", "32*latent_height"))


def size(tokens: int) -> AxisRanges:
    return {
        "batch": AxisRange(1, 2, 3),
        "tokens": AxisRange(tokens, tokens, tokens + 10),
        "text_length": AxisRange(1, 128, 256),
    }


def test_one_size_is_one_profile_of_every_input() -> None:
    assert plan_profiles([TOKENS, MASK], [size(1000)]) == (
        {
            "hidden_states": Range(min=(1, 1000, 128), opt=(2, 1000, 128), max=(3, 1010, 128)),
            "mask": Range(min=(1, 1), opt=(2, 128), max=(3, 256)),
        },
    )


def test_rules_are_resolved() -> None:
    axes = {"batch": AxisRange(1, 1, 1), "latent_frames": AxisRange(1, 2, 16), "latent_height": AxisRange(2, 3, 4)}
    (profile,) = plan_profiles([VIDEO], [axes])
    assert profile["video"] == Range(min=(1, 3, 1, 64), opt=(1, 3, 9, 96), max=(1, 3, 121, 128))


def test_sizes_close_to_each_other_share_a_profile_tuned_for_the_largest() -> None:
    (profile,) = plan_profiles([TOKENS, MASK], [size(1000), size(1000 * BAND - 1)])
    assert profile["hidden_states"] == Range(min=(1, 1000, 128), opt=(2, 3999, 128), max=(3, 4009, 128))


def test_sizes_far_apart_get_tighter_profiles_after_the_one_that_takes_all() -> None:
    profiles = plan_profiles([TOKENS, MASK], [size(1000), size(1000 * BAND), size(900), size(1000 * BAND**2)])
    spans = [profile["hidden_states"] for profile in profiles]
    assert [(span.min[1], span.opt[1], span.max[1]) for span in spans] == [
        (900, 16000, 16010),
        (900, 4000, 4010),
        (900, 1000, 1010),
    ]


def test_channels_do_not_count() -> None:
    """Text features are wide: they would hide that one video has many times the tokens of another."""
    text = TensorSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", "text_length", 4096))
    assert len(plan_profiles([TOKENS, text], [size(1000), size(4000)])) == 2


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5000)), min_size=1, max_size=6))
def test_the_first_profile_takes_every_size_and_all_are_legal(sizes: list[tuple[int, int]]) -> None:
    asked = [size(tokens) | {"batch": AxisRange(1, batch, batch)} for batch, tokens in sizes]
    profiles = plan_profiles([TOKENS, MASK], asked)
    for profile in profiles:
        for name, span in profile.items():
            assert all(1 <= low <= usual <= high for low, usual, high in zip(span.min, span.opt, span.max, strict=True))
            assert len(span.min) == len(TOKENS.shape if name == TOKENS.name else MASK.shape)
        for end in ("min", "opt", "max"):  # one size an axis, over all inputs
            bind_axes([TOKENS, MASK], {name: getattr(span, end) for name, span in profile.items()})
    for each in asked:
        first = profiles[0]["hidden_states"]
        assert first.min[:2] <= (each["batch"].min, first.min[1])
        assert first.min[1] <= each["tokens"].min
        assert first.max[0] >= each["batch"].max
        assert first.max[1] >= each["tokens"].max


def test_an_axis_that_the_family_does_not_plan_is_refused() -> None:
    with pytest.raises(EngineError, match="the axis batch of hidden_states, mask"):
        plan_profiles([TOKENS, MASK], [{symbol: axis for symbol, axis in size(8).items() if symbol != "batch"}])


@pytest.mark.parametrize("axis", [AxisRange(2, 1, 3), AxisRange(1, 4, 3), AxisRange(0, 1, 1)])
def test_a_range_that_tensorrt_would_not_take_is_refused(axis: AxisRange) -> None:
    with pytest.raises(EngineError, match="expected 1 <= min <= opt <= max"):
        plan_profiles([TOKENS, MASK], [size(8) | {"tokens": axis}])
