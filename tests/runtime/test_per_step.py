"""Oracle: loops written from the rule, and the ranges of Lightricks' 13B schedule read by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.errors import RequestError
from telecine.per_step import TOLERANCE, listed, per_step, sigma_ranges

SIGMAS = np.array([1.0, 0.75, 0.5, 0.25], np.float32)
# The published schedule of the 13B model.
ENDS_13B = [1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618]


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ([1, 2], [1, 2]),
        ((), []),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (np.array([[1], [2]]), [[1], [2]]),
        (range(2), [0, 1]),
        (3.0, None),
        (np.float32(3), None),
        (np.array(3.0), None),
        ("12", None),
        (b"12", None),
        (None, None),
        ({1: 2}, None),
        ({1}, None),
    ],
)
def test_what_is_a_list(value: Any, items: list[Any] | None) -> None:
    assert listed(value) == items


def test_a_single_value_is_every_steps() -> None:
    assert per_step("guidance_scale", 3.0, SIGMAS) == [3.0] * 4
    assert per_step("guidance_scale", 3.0, SIGMAS, [0.5, 0.3]) == [3.0] * 4


def test_a_list_is_a_value_a_step() -> None:
    assert per_step("guidance_scale", [4, 3, 2, 1], SIGMAS) == [4, 3, 2, 1]
    assert per_step("guidance_scale", np.array([4, 3, 2, 1]), SIGMAS) == [4, 3, 2, 1]
    assert per_step("stg_blocks", [[], [1], [2, 3], []], SIGMAS) == [[], [1], [2, 3], []]


def test_a_list_beside_sigmas_is_a_value_a_range() -> None:
    assert per_step("guidance_scale", [8, 6], SIGMAS, [0.75, 0.5]) == [8, 8, 6, 6]
    assert per_step("guidance_scale", [8], SIGMAS, [1.0]) == [8, 8, 8, 8]


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_a_list_of_another_length_than_the_steps_is_refused(values: list[float]) -> None:
    expected = (
        rf"stg_scale has {len(values)} values; expected 4: one for each step of this run\. Give 4, or a single one"
    )
    with pytest.raises(RequestError, match=expected):
        per_step("stg_scale", values, SIGMAS)


def test_a_list_of_another_length_than_the_ranges_is_refused() -> None:
    expected = "stg_scale has 4 values; expected 2: one for each sigma of guidance_sigmas"
    with pytest.raises(RequestError, match=expected):
        per_step("stg_scale", [1, 2, 3, 4], SIGMAS, [1.0, 0.5])


def test_the_published_schedule_over_its_own_steps() -> None:
    # 30 steps that fall by 1/600 down to 0.975 and faster from there, as its checkpoint samples.
    linear = 1 - np.arange(16) / 600
    sigmas = np.append(linear, [0.96, 0.92, 0.9, 0.8, 0.62, 0.6, 0.3]).astype(np.float32)
    expected = [0, 1, 1] + [2] * 2 + [3] * 5 + [4] * 4 + [5] * 2 + [5, 5, 6, 6, 6, 6, 6]
    assert sigma_ranges(sigmas, ENDS_13B) == expected


def test_rounding_does_not_move_a_sigma_off_its_end() -> None:
    ends = [0.9937, 0.9094, 0.725]
    for sigma in np.float32(ends):
        for near in (np.nextafter(sigma, np.float32(0)), sigma, np.nextafter(sigma, np.float32(1))):
            (found,) = sigma_ranges(np.array([near]), ends)
            assert ends[found] == pytest.approx(float(sigma))


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6, unique=True),
)
def test_a_sigma_is_in_the_first_range_whose_end_is_not_above_it(sigmas: list[float], ends: list[float]) -> None:
    ends = sorted(ends, reverse=True)
    for sigma, found in zip(sigmas, sigma_ranges(np.array(sigmas, np.float32), ends), strict=True):
        at_or_below = [index for index, end in enumerate(ends) if end - TOLERANCE <= sigma]
        assert found == (at_or_below[0] if at_or_below else len(ends) - 1)
