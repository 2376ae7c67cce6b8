"""What stays loaded within a limit: pure numbers, and an exhaustive oracle."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from telecine.errors import RequestError
from telecine.memory_budget import (
    LIBRARIES,
    MIB,
    SESSION,
    Need,
    Residents,
    activation_bytes,
    check_limit,
    predicted_peak,
)


def need(component: str, weights: int, activations: int = 0, host: int = 0) -> Need:
    """In MiB."""
    return Need(component=component, weights=weights * MIB, activations=activations * MIB, host=host * MIB)


STAGES = (need("text_encoder", 900, 10), need("transformer", 400, 60, 5), need("vae_decoder", 50, 200, 5))


def test_without_a_limit_all_stay_and_arenas_add_up() -> None:
    kept = sum(stage.weights + stage.activations + SESSION for stage in STAGES)
    assert predicted_peak(STAGES, None, {}) == LIBRARIES + kept + 5 * MIB


def test_networks_alone_are_the_least() -> None:
    least = max(stage.alone for stage in STAGES)
    assert predicted_peak(STAGES, least, {}) == least == STAGES[0].alone
    with pytest.raises(RequestError, match=r"memory_limit is .*; expected at least 967MiB here"):
        check_limit(least - 1, least)
    check_limit(least, least)
    check_limit(None, least)


@pytest.mark.parametrize("limit", range(967, 1900, 35))
def test_within_the_limit_no_more_is_dropped_than_must_be(limit: int) -> None:
    """Of every subset of what is loaded, the one that is dropped is enough, and none that is smaller would do."""
    residents = Residents()
    for stage in STAGES:
        before = dict(residents.held)
        peak, dropped = residents.enter(stage, limit * MIB)
        assert peak <= max(limit * MIB, stage.alone)
        others = [each for name, each in before.items() if name != stage.component]
        enough = [
            subset
            for count in range(len(others) + 1)
            for subset in itertools.combinations(others, count)
            if stage.alone + sum(each.kept for each in others if each not in subset) <= limit * MIB
        ]
        assert len(dropped) == min(len(subset) for subset in enough)
        assert set(residents.held) == (set(before) | {stage.component}) - set(dropped)


def test_an_arena_keeps_what_an_earlier_run_took() -> None:
    large, small = need("vae_decoder", 50, 200), need("vae_decoder", 50, 20)
    residents = Residents()
    residents.enter(large, None)
    assert residents.enter(small, None)[0] == large.alone
    assert predicted_peak([small], None, {}) == small.alone


def test_what_is_loaded_from_earlier_counts_and_is_dropped_first_where_it_must() -> None:
    held = {"vae_encoder": need("vae_encoder", 80, 100)}
    assert predicted_peak(STAGES[2:], None, held) == STAGES[2].alone + held["vae_encoder"].kept
    assert predicted_peak(STAGES[2:], STAGES[2].alone, held) == STAGES[2].alone
    assert list(held) == ["vae_encoder"]  # a prediction changes nothing


def test_activations_grow_with_rows_and_width_and_are_more_where_values_are_cast() -> None:
    assert activation_bytes(2000, 640, "fp32") == 2 * activation_bytes(1000, 640, "fp32")
    assert activation_bytes(1000, 1280, "fp32") == 2 * activation_bytes(1000, 640, "fp32")
    assert activation_bytes(1000, 640, "fp16") > activation_bytes(1000, 640, "fp32") > 7 * 4 * 1000 * 640


def test_weights_are_streamed_last_and_no_more_than_must_be() -> None:
    streamed = dataclasses.replace(STAGES[1], streams=True)
    limit = streamed.alone - 100 * MIB
    residents = Residents({"text_encoder": STAGES[0]})
    assert residents.enter(streamed, limit) == (limit, ("text_encoder",))
    assert residents.held["transformer"].weights == streamed.weights - 100 * MIB
    assert streamed.least == streamed.alone - streamed.weights
    assert streamed.within(streamed.least).weights == 0
    assert streamed.within(None) == streamed.within(streamed.alone) == streamed
    assert STAGES[1].within(limit) == STAGES[1]  # was not built for it
    assert STAGES[1].least == STAGES[1].alone
