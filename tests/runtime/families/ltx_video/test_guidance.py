"""From a request to each step's guidance: how values spread, and what is refused before any network is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from telecine.errors import RequestError
from telecine.families import FAMILIES
from telecine.families.ltx_video.guidance import request_guidance
from telecine.guidance import Guidance, StepGuidance
from telecine.request import Request

DEFAULTS = FAMILIES["ltx-video"].pipelines["LTXPipeline"].defaults
SIGMAS = np.array([1.0, 0.9, 0.5], np.float32)


def resolve(**asked: Any) -> Guidance:
    request = Request.resolve({"prompt": "a fox"} | asked, DEFAULTS)
    host: Any = SimpleNamespace(transformer_blocks=4)
    return request_guidance(request, SIGMAS, host)


def test_the_defaults_are_the_pipelines_own_guidance() -> None:
    assert resolve() == Guidance((StepGuidance(scale=3.0),) * 3)


def test_single_values_are_every_steps() -> None:
    got = resolve(guidance_scale=5, guidance_rescale=0.7, stg_scale=1, stg_blocks=[3, 0], cfg_star=True)
    step = StepGuidance(scale=5.0, rescale=0.7, stg_scale=1.0, stg_blocks=(3, 0), cfg_star=True)
    assert got == Guidance((step,) * 3)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_lists_are_a_value_a_step(kind: Any) -> None:
    got = resolve(
        guidance_scale=kind([1.0, 6.0, 8.0]),
        guidance_rescale=kind([0.0, 0.5, 1.0]),
        stg_scale=kind([0.0, 4.0, 2.0]),
        stg_blocks=kind([[0], [3], [2]]),
        stg_mode="attention_skip",
    )
    assert got == Guidance(
        (
            StepGuidance(scale=1.0, rescale=0.0, stg_scale=0.0, stg_blocks=(0,), stg_mode="attention_skip"),
            StepGuidance(scale=6.0, rescale=0.5, stg_scale=4.0, stg_blocks=(3,), stg_mode="attention_skip"),
            StepGuidance(scale=8.0, rescale=1.0, stg_scale=2.0, stg_blocks=(2,), stg_mode="attention_skip"),
        )
    )


def test_block_lists_may_be_of_different_lengths() -> None:
    got = resolve(stg_scale=[0, 1, 1], stg_blocks=[[], (1, 2, 3), np.array([0])])
    assert [step.stg_blocks for step in got.steps] == [(), (1, 2, 3), (0,)]


def test_lists_beside_sigmas_are_a_value_a_range() -> None:
    got = resolve(
        guidance_sigmas=[0.9, 0.6], guidance_scale=[8.0, 1.0], stg_scale=[0.0, 1.0], stg_blocks=[[], [2]],
        guidance_rescale=0.7,
    )  # fmt: skip
    early = StepGuidance(scale=8.0, rescale=0.7)
    assert got == Guidance((early, early, StepGuidance(rescale=0.7, stg_scale=1.0, stg_blocks=(2,))))


def test_no_sigmas_take_a_presets_back() -> None:
    request = Request.resolve(
        {"prompt": "a", "guidance_sigmas": [], "guidance_scale": [1, 2, 3]}, {"guidance_sigmas": [1.0]}, DEFAULTS
    )
    host: Any = SimpleNamespace(transformer_blocks=4)
    assert [step.scale for step in request_guidance(request, SIGMAS, host).steps] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale", "stg_scale", "stg_blocks"])
def test_a_list_of_another_length_than_the_run_is_refused(name: str) -> None:
    value = [[0], [1]] if name == "stg_blocks" else [0.5, 0.5]
    with pytest.raises(RequestError, match=f"{name} has 2 values; expected 3: one for each step of this run"):
        resolve(**{name: value})
    with pytest.raises(RequestError, match=f"{name} has 2 values; expected 1: one for each sigma of guidance_sigmas"):
        resolve(guidance_sigmas=[1.0], **{name: value})


@pytest.mark.parametrize("blocks", [[4], [0, 4, 17], [-1], [[0], [0], [4]], [10**30]])
def test_blocks_that_the_model_lacks_are_refused(blocks: Any) -> None:
    with pytest.raises(RequestError, match=r"stg_blocks has -?[\d, ]+; expected indexes from 0 to 3: the model has 4"):
        resolve(stg_scale=1.0, stg_blocks=blocks)


def test_blocks_are_checked_where_they_are_not_used_too() -> None:
    with pytest.raises(RequestError, match="stg_blocks has 4"):
        resolve(stg_blocks=[4])


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        ({"stg_scale": 1.0}, 1),
        ({"stg_scale": 1.0, "stg_blocks": []}, 1),
        ({"stg_scale": 1.0, "stg_blocks": [[0], [], [0]]}, 2),
        ({"stg_scale": [0, 0, 1.0], "stg_blocks": [[0], [1], []]}, 3),
        ({"stg_scale": [0, 0, 1.0]}, 3),
    ],
)
def test_guidance_away_from_nothing_is_refused(asked: dict[str, Any], step: int) -> None:
    with pytest.raises(RequestError, match=f"step {step} of 3 has stg_scale 1 and no stg_blocks"):
        resolve(**asked)
