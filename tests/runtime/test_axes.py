"""Named axes against arithmetic: what binds, what does not, and what a message says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.axes import bind_axes, resolve
from telecine.errors import BackendError
from telecine.manifest import TensorSpec


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


LATENTS = spec("latents", "batch", 16, "frames", "height", "width")
VIDEO = spec("video", "batch", 3, "8*frames-7", "32*height", "32*width")
TIMESTEP = spec("timestep", "batch")

sizes = st.integers(1, 200)


@given(sizes, sizes, sizes, sizes)
def test_rules_go_both_ways(batch: int, frames: int, height: int, width: int) -> None:
    small, large = (batch, 16, frames, height, width), (batch, 3, 8 * frames - 7, 32 * height, 32 * width)
    expected = {"batch": batch, "frames": frames, "height": height, "width": width}
    assert bind_axes([LATENTS], {"latents": small}) == expected
    assert bind_axes([VIDEO], {"video": large}) == expected
    assert resolve(VIDEO, expected) == large
    assert resolve(LATENTS, expected) == small


@given(st.integers(-20, 100))
def test_only_sizes_on_the_grid_bind(size: int) -> None:
    rule = spec("video", "8*frames-7")
    if size >= 1 and size % 8 == 1:
        assert bind_axes([rule], {"video": (size,)}) == {"frames": (size + 7) // 8}
    else:
        with pytest.raises(BackendError):
            bind_axes([rule], {"video": (size,)})


@pytest.mark.parametrize(
    ("rule", "size", "value"), [("n", 4, 4), ("2*n", 4, 2), ("n+1", 4, 3), ("n-1", 4, 5), (" 2 * n - 2 ", 4, 3)]
)
def test_every_form_of_a_rule(rule: str, size: int, value: int) -> None:
    assert bind_axes([spec("x", rule)], {"x": (size,)}) == {"n": value}
    assert resolve(spec("x", rule), {"n": value}) == (size,)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 2, 2),  # rank
        (1, 15, 2, 2, 2),  # fixed size
        (0, 16, 2, 2, 2),  # empty
        (),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=r"latents has shape \(.*; expected \(batch, 16, frames, height, width\)"):
        bind_axes([LATENTS], {"latents": shape})


def test_inputs_that_contradict_each_other_name_the_axis() -> None:
    with pytest.raises(
        BackendError, match=r"timestep has shape \(3,\); expected \(batch\) where \{'batch': 2\} so far"
    ):
        bind_axes([LATENTS, TIMESTEP], {"latents": (2, 16, 1, 1, 1), "timestep": (3,)})


@pytest.mark.parametrize("names", [[], ["latents"], ["latents", "timestep", "mask"], ["latents", "time"]])
def test_exactly_the_graphs_inputs_are_taken(names: list[str]) -> None:
    with pytest.raises(BackendError, match=r"expected exactly \['latents', 'timestep'\]"):
        bind_axes([LATENTS, TIMESTEP], dict.fromkeys(names, (1,)))


@pytest.mark.parametrize("rule", ["8*", "frames*8", "7", "a-b", "", "8*frames-7+x"])
def test_a_rule_of_another_form_is_refused(rule: str) -> None:
    with pytest.raises(BackendError, match="the axis rule"):
        bind_axes([spec("x", rule)], {"x": (3,)})


def test_an_output_axis_that_no_input_has_is_refused() -> None:
    with pytest.raises(BackendError, match="the axis channels of an output; expected one that an input has: batch"):
        resolve(spec("y", "batch", "channels"), {"batch": 1})
