"""`second_stage`'s settings: where they come from, and which are refused before anything runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from telecine.errors import RequestError
from telecine.request import Request
from telecine.second_stage import REFINEMENT, SecondStage

DISTILLED = {"denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0], "adain_factor": 1.0}


def test_none_is_one_stage_and_an_empty_one_the_dev_recipe() -> None:
    assert SecondStage.resolve(None, None) is None
    assert SecondStage.resolve({}, None) == SecondStage(
        downscale_factor=2 / 3,
        adain_factor=0.0,
        tone_map_compression_ratio=0.0,
        refinement={"denoise_strength": 0.4, "num_inference_steps": 10},
    )


def test_what_is_asked_wins_setting_by_setting() -> None:
    stage = SecondStage.resolve({"denoise_strength": 0.5, "adain_factor": None}, DISTILLED)
    assert stage is not None
    assert stage.adain_factor == 1.0
    assert stage.refinement == {
        "denoise_strength": 0.5, "timesteps": DISTILLED["timesteps"], "num_inference_steps": 10,
    }  # fmt: skip


def test_a_number_of_steps_sets_the_presets_timesteps_aside() -> None:
    stage = SecondStage.resolve({"num_inference_steps": 4}, DISTILLED)
    assert stage is not None
    assert stage.refinement == {"num_inference_steps": 4, "denoise_strength": 0.999}


def test_what_may_differ_is_a_parameter_of_a_request() -> None:
    assert set(REFINEMENT) <= {field.name for field in dataclasses.fields(Request)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (True, "second_stage has True"),
        ({"sharpness": 1}, "second_stage has sharpness"),
        ({"height": 64}, "second_stage has height"),
        ({"downscale_factor": 0}, "downscale_factor is 0"),
        ({"downscale_factor": 1.5}, "downscale_factor is 1.5"),
        ({"adain_factor": -1}, "adain_factor is -1"),
        ({"tone_map_compression_ratio": 1.1}, "a number from 0 to 1"),
        ({"denoise_strength": np.nan}, "denoise_strength of the second stage is nan"),
        ({"denoise_strength": "much"}, "denoise_strength of the second stage is 'much'"),
        ({"denoise_strength": 0.0}, "above 0 and below 1"),
        ({"denoise_strength": 1}, "above 0 and below 1"),
    ],
)
def test_refusals(settings: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        SecondStage.resolve(settings)
