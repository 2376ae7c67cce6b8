"""Parameters and their defaults against diffusers' signatures; what is refused; the manifest's part."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2ConditionPipeline, LTX2ImageToVideoPipeline, LTX2Pipeline
from doubles.ltx2 import NEWER, make_host, make_transformer

from telecine.errors import BundleError, RequestError
from telecine.families.ltx2.finish import clip, for_decoder
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.request import CONDITION_DEFAULTS, DEFAULTS, REFUSES, LTX2Request, checked_latents
from telecine.noise import Generator
from telecine.shapes import LatentShape

# What a torch generator, files and Python's ways of returning are to telecine.
TORCHS = {
    "self", "generator", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
}  # fmt: skip


@pytest.mark.parametrize(
    ("pipeline", "defaults"),
    [(LTX2Pipeline, DEFAULTS), (LTX2ImageToVideoPipeline, DEFAULTS), (LTX2ConditionPipeline, CONDITION_DEFAULTS)],
)
def test_every_parameter_acts_or_is_refused_and_defaults_are_diffusers(pipeline: Any, defaults: Any) -> None:
    theirs = {name: each.default for name, each in inspect.signature(pipeline.__call__).parameters.items()}
    own = {field.name: field.default for field in dataclasses.fields(LTX2Request)}
    for name in theirs.keys() - TORCHS:
        assert (name in own) != (name in REFUSES), name
        if name in ("num_frames", "output_type") or name in REFUSES:  # None is 121 without a duration head; "pil"
            continue
        assert defaults.get(name, own[name]) == theirs[name], name
    assert defaults["num_frames"] == 121
    assert not REFUSES.keys() & defaults.keys()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"motion_speed": 0}, "motion_speed is 0"),
        ({"motion_speed": "fast"}, "motion_speed is 'fast'"),
        ({"noise_scale": 1.5}, "noise_scale is 1.5"),
        ({"use_cross_timestep": 1}, "use_cross_timestep is 1"),
        ({"image_crf": 52}, "image_crf is 52"),
        ({"image_crf": 3.0}, "image_crf is 3.0"),
        ({"audio_stg_scale": -1}, "audio_stg_scale is -1"),
        ({"audio_guidance_rescale": 2}, "audio_guidance_rescale is 2"),
        ({"modality_scale": [1, "a"]}, "modality_scale is"),
        ({"spatio_temporal_guidance_blocks": [[1]]}, "spatio_temporal_guidance_blocks is"),
        ({"spatio_temporal_guidance_blocks": 28}, "spatio_temporal_guidance_blocks is 28"),
        ({"audio_latents": "noise"}, "audio_latents"),
    ],
)
def test_wrong_values_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        LTX2Request.resolve({"prompt": "a fox", **asked}, DEFAULTS)


def test_a_changed_request_is_of_the_same_kind() -> None:
    request = LTX2Request.resolve({"prompt": "a fox", "motion_speed": 0.5}, DEFAULTS)
    changed = request.changed(sigmas=[0.9, 0.5])
    assert type(changed) is LTX2Request
    assert (changed.motion_speed, changed.sigmas, changed.conditioning_frame_rate) == (0.5, [0.9, 0.5], 48.0)


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, 1.0), ({"sigmas": [0.9, 0.5]}, 0.9), ({"sigmas": [0.9], "noise_scale": 0.2}, 0.2)]
)
def test_conditions_begin_with_the_noise_of_the_first_sigma(asked: dict[str, Any], expected: float) -> None:
    request = LTX2Request.resolve({"prompt": "a fox", **asked}, CONDITION_DEFAULTS)
    assert request.share_of_noise(conditioned=True) == expected


def test_given_latents_must_fit() -> None:
    latents = np.zeros((1, 4, 3, 2, 2), np.float16)
    assert checked_latents("latents", latents, (1, 4, 3, 2, 2), "five axes").dtype == np.float32
    with pytest.raises(RequestError, match="five axes"):
        checked_latents("latents", latents, (1, 4, 3, 2, 3), "five axes")
    with pytest.raises(RequestError, match="NaN"):
        checked_latents("latents", latents + np.nan, latents.shape, "five axes")


class TestHost:
    TOLD = make_host(make_transformer(**NEWER))

    @pytest.mark.parametrize("name", [*TOLD])
    def test_a_missing_field_is_named(self, name: str) -> None:
        with pytest.raises(BundleError, match=name):
            Host.parse({key: value for key, value in self.TOLD.items() if key != name})

    @pytest.mark.parametrize("name", ["scheduler", "audio_scheduler"])
    def test_stochastic_steps_are_refused(self, name: str) -> None:
        with pytest.raises(BundleError, match="stochastically"):
            Host.parse(self.TOLD | {name: {"stochastic_sampling": True}})

    def test_the_sound_may_have_a_scheduler_of_its_own(self) -> None:
        host = Host.parse(self.TOLD | {"audio_scheduler": {"shift": 3.0}})
        assert (host.scheduler.shift, host.audio_scheduler.shift) == (1.0, 3.0)
        assert Host.parse(self.TOLD).audio_scheduler == host.scheduler

    @pytest.mark.parametrize("conditioned", [True, False])
    def test_noise_is_mixed_in_before_denormalising(self, conditioned: bool) -> None:
        host = Host.parse(self.TOLD | {"timestep_conditioning": conditioned, "scaling_factor": 1.3})
        latents = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 2), np.float32)
        made = for_decoder(host, latents, [Generator(0)], np.array([0.25, 0.5], np.float32))
        expected = torch.from_numpy(latents)
        if conditioned:
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
            scale = torch.tensor([0.25, 0.5])[:, None, None, None, None]
            expected = (1 - scale) * expected + scale * noise
        mean, std = (torch.tensor(self.TOLD[f"latents_{name}"]) for name in ("mean", "std"))
        expected = LTX2Pipeline._denormalize_latents(expected, mean, std, 1.3)
        np.testing.assert_allclose(made, expected.numpy(), rtol=0, atol=1e-6)

    def test_a_clip_is_without_its_keyframes(self) -> None:
        tokens = np.random.default_rng(0).standard_normal((2, 12 + 8, 4), np.float32)
        latent = LatentShape(frames=3, height=2, width=2)
        theirs = LTX2Pipeline._unpack_latents(torch.from_numpy(tokens[:, :12]), 3, 2, 2)
        np.testing.assert_array_equal(clip(tokens, latent), theirs.numpy())
