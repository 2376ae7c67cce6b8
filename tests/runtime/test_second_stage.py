"""`second_stage`'s settings: where they come from, and which are refused before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from telecine.errors import RequestError
from telecine.families import FAMILIES
from telecine.families.base import TwoStageSpec
from telecine.pipeline import Pipeline
from telecine.second_stage import UPSAMPLING, SecondStage

DISTILLED = {"denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0], "adain_factor": 1.0}
SPECS = {name: family.two_stage for name, family in FAMILIES.items() if family.two_stage is not None}


def resolve(*layers: object, family: str = "ltx-video") -> SecondStage:
    return SecondStage.resolve(*layers, defaults=SPECS[family].defaults, refinement=SPECS[family].refinement)


def test_an_empty_one_is_the_dev_recipe() -> None:
    assert resolve({}, None) == SecondStage(
        downscale_factor=2 / 3,
        adain_factor=0.0,
        tone_map_compression_ratio=0.0,
        refinement={"denoise_strength": 0.4, "num_inference_steps": 10},
    )


def test_what_is_asked_wins_setting_by_setting() -> None:
    stage = resolve({"denoise_strength": 0.5, "adain_factor": None}, DISTILLED)
    assert stage.adain_factor == 1.0
    assert stage.refinement == {
        "denoise_strength": 0.5, "timesteps": DISTILLED["timesteps"], "num_inference_steps": 10,
    }  # fmt: skip


def test_a_number_of_steps_sets_the_presets_timesteps_aside() -> None:
    stage = resolve({"num_inference_steps": 4}, DISTILLED)
    assert stage.refinement == {"num_inference_steps": 4, "denoise_strength": 0.999}


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_what_may_differ_is_a_parameter_of_generate(spec: TwoStageSpec) -> None:
    assert set(spec.refinement) <= set(inspect.signature(Pipeline.generate).parameters)
    assert set(spec.defaults) <= {*UPSAMPLING, *spec.refinement}


def test_ltx_2_s_is_diffusers_and_has_settings_of_its_own() -> None:
    stage = resolve({"sigmas": [0.8, 0.4]}, {"noise_scale": 0.8}, family="ltx-2")
    assert stage.downscale_factor == 0.5
    assert stage.refinement == {
        "sigmas": [0.8, 0.4], "noise_scale": 0.8, "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0,
        "guidance_rescale": 0.0, "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0,
    }  # fmt: skip
    with pytest.raises(RequestError, match="second_stage has denoise_strength"):
        resolve({"denoise_strength": 0.4}, family="ltx-2")


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
        resolve(settings)
