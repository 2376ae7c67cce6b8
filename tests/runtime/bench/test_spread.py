"""Medians, quartiles, order and growth, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.bench.spread import Spread, fitted_exponent, interleaved


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_a_spread_is_numpys_quartiles(samples: list[float]) -> None:
    spread = Spread.of(samples)
    expected = np.quantile(samples, [0.25, 0.5, 0.75])
    np.testing.assert_allclose([spread.low, spread.median, spread.high], expected, rtol=1e-12, atol=1e-12)
    assert spread.samples == tuple(samples)


def test_every_round_begins_with_the_next_one() -> None:
    assert "".join(interleaved("abc", 4)) == "abcbcacababc"


def test_the_exponent_of_a_power() -> None:
    sizes = [256, 512, 2048]
    assert fitted_exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    assert fitted_exponent([256, 256], [1, 2]) is None
