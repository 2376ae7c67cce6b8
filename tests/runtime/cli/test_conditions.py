"""`--image FILE[@FRAME[:STRENGTH]]` and `--video`, as parameters of `generate`."""

from __future__ import annotations

from typing import Any

import pytest

from telecine.cli.conditions import conditions
from telecine.errors import RequestError


def parsed(images: list[str], videos: list[str]) -> list[tuple[Any, Any, int, float]]:
    return [
        (each.image, each.video, each.frame_index, each.strength) for each in conditions(images, videos)["conditions"]
    ]


def test_nothing() -> None:
    assert conditions([], []) == {}


def test_bare_images_are_the_first_frame_of_all_or_of_each_video() -> None:
    assert conditions(["a.png"], []) == {"image": "a.png"}
    assert conditions(["a.png", "b.png"], []) == {"image": ["a.png", "b.png"]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png@0", ("a.png", 0, 1.0)),
        ("a.png@16", ("a.png", 16, 1.0)),
        ("a.png@16:0.5", ("a.png", 16, 0.5)),
        ("a.png@16:.5", ("a.png", 16, 0.5)),
        ("me@home/a@2.png@8", ("me@home/a@2.png", 8, 1.0)),
        ("a@8@16:1", ("a@8", 16, 1.0)),
    ],
)
def test_frames_and_strengths(value: str, expected: tuple[str, int, float]) -> None:
    file, frame, strength = expected
    assert parsed([value], []) == [(file, None, frame, strength)]
    assert parsed([], [value]) == [(None, file, frame, strength)]


@pytest.mark.parametrize("file", ["me@home.png", "a@b:0.5", "C:a.mp4", "@8"])
def test_what_only_looks_like_a_place_is_a_name(file: str) -> None:
    assert conditions([file], []) == {"image": file}
    assert conditions([], [file]) == {"video": file}


def test_a_bare_image_among_others_is_held_at_frame_0() -> None:
    assert parsed(["a.png", "b.png@8:0.6"], ["c.mp4"]) == [
        ("a.png", None, 0, 1.0),
        ("b.png", None, 8, 0.6),
        (None, "c.mp4", 0, 1.0),
    ]


def test_a_bare_video_is_what_is_changed_and_two_are_conditions() -> None:
    assert conditions([], ["a.mp4"]) == {"video": "a.mp4"}
    assert parsed([], ["a.mp4", "b.mp4"]) == [(None, "a.mp4", 0, 1.0), (None, "b.mp4", 0, 1.0)]


def test_a_strength_above_1() -> None:
    with pytest.raises(RequestError, match="strength is 2.0"):
        conditions(["a.png@8:2"], [])
