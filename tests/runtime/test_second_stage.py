"""`second_stage`'s settings: where they come from, and which are refused before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from telecine.errors import RequestError
from telecine.second_stage import SecondStage

DISTILLED = {"denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0], "adain_factor": 1.0}


def test_none_is_one_stage_and_an_empty_one_the_dev_recipe() -> None:
    assert SecondStage.resolve(None, None) is None
    assert SecondStage.resolve({}, None) == SecondStage(denoise_strength=0.4, num_inference_steps=10)


def test_what_is_asked_wins_setting_by_setting() -> None:
    stage = SecondStage.resolve({"denoise_strength": 0.5, "adain_factor": None}, DISTILLED)
    assert stage == SecondStage(**DISTILLED | {"denoise_strength": 0.5})


def test_a_number_of_steps_sets_the_presets_timesteps_aside() -> None:
    stage = SecondStage.resolve({"num_inference_steps": 4}, DISTILLED)
    assert stage is not None
    assert (stage.num_inference_steps, stage.timesteps) == (4, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (True, "second_stage has True"),
        ({"sharpness": 1}, "second_stage has sharpness"),
        ({"downscale_factor": 0}, "downscale_factor is 0"),
        ({"downscale_factor": 1.5}, "downscale_factor is 1.5"),
        ({"adain_factor": -1}, "adain_factor is -1"),
        ({"tone_map_compression_ratio": 1.1}, "a number from 0 to 1"),
        ({"denoise_strength": np.nan}, "denoise_strength of the second stage is nan"),
        ({"denoise_strength": "much"}, "denoise_strength of the second stage is 'much'"),
        ({"denoise_strength": 0.0}, "above 0 and below 1"),
        ({"denoise_strength": 1}, "above 0 and below 1"),
        ({"num_inference_steps": 0}, "num_inference_steps of the second stage is 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps of the second stage is 2.5"),
        ({"guidance_scale": np.inf}, "guidance_scale is inf"),
        ({"guidance_rescale": 2}, "guidance_rescale is 2"),
        ({"timesteps": 900}, "timesteps is 900"),
        ({"timesteps": []}, r"timesteps is \[\]"),
        ({"denoise_strength": 0.05}, "0.05 of 10 steps"),
        ({"denoise_strength": 0.4, "timesteps": [1000, 500]}, "0.4 of 2 steps; expected at least one"),
    ],
)
def test_refusals(settings: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        SecondStage.resolve(settings)
