"""Profiles by size, against a naive search."""

from __future__ import annotations

import itertools

import pytest

from telecine.backends.tensorrt.profiles import choose_profile
from telecine.engine import Range
from telecine.errors import EngineError
from telecine.manifest import TensorSpec

INPUTS = {
    "x": TensorSpec(name="x", dtype="float32", shape=("batch", "tokens", 16)),
    "scale": TensorSpec(name="scale", dtype="float32", shape=(1,)),
}


def profile(low: int, best: int, high: int, batch: tuple[int, int, int] = (1, 1, 3)) -> dict[str, Range]:
    return {"x": Range(min=(batch[0], low, 16), opt=(batch[1], best, 16), max=(batch[2], high, 16))}


def shapes(tokens: int, batch: int = 1) -> dict[str, tuple[int, ...]]:
    return {"x": (batch, tokens, 16), "scale": (1,)}


PROFILES = (profile(1, 10, 100), profile(50, 90, 200), profile(150, 1000, 1000, batch=(1, 1, 1)))


def test_every_size_gets_a_profile_that_covers_it() -> None:
    for tokens, batch in itertools.product(range(1, 201), (1, 2, 3)):
        limits = PROFILES[choose_profile(PROFILES, INPUTS, shapes(tokens, batch))]["x"]
        assert limits.min[0] <= batch <= limits.max[0]
        assert limits.min[1] <= tokens <= limits.max[1]


@pytest.mark.parametrize(
    ("tokens", "index"), [(10, 0), (55, 1), (90, 1), (100, 1), (25, 0), (150, 1), (200, 1), (201, 2), (1000, 2)]
)
def test_the_nearest_tuning_wins(tokens: int, index: int) -> None:
    assert choose_profile(PROFILES, INPUTS, shapes(tokens)) == index


def test_the_first_of_equals() -> None:
    assert choose_profile((profile(1, 5, 9), profile(1, 5, 9)), INPUTS, shapes(7)) == 0


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            shapes(1001),
            "tokens of x is 1001, .*expected 1 to 100 or 50 to 200 or 150 to 1000. Run: telecine build BUNDLE",
        ),
        (shapes(10, batch=4), "batch of x is 4, .*expected 1 or 1 to 3. Run"),
        (shapes(500, batch=2), "batch of x is 2|tokens of x is 500, .*together with the other sizes"),
    ],
)
def test_a_size_outside_names_axis_range_and_command(size: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        choose_profile(PROFILES, INPUTS, size)
