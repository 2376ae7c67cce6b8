"""Guidance, schedules, steps and what the transformer is told, one by one; `test_runs` has them together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2LatentUpsamplePipeline
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from doubles.ltx2 import NEWER, make_host, make_transformer

from telecine.denoise import HostSteps, denoise
from telecine.errors import RequestError
from telecine.families.ltx2.guidance import Scales, StepGuidance, modality_mask, request_guidance
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.modalities import AudioVideo, Told, clean, velocity
from telecine.families.ltx2.request import DEFAULTS, LTX2Request
from telecine.families.ltx2.sampler import AudioVideoSampler, Held
from telecine.families.ltx2.schedule import DISTILLED_SIGMAS, SECOND_STAGE_SIGMAS, schedule_of
from telecine.families.ltx2.transformer import timestep_inputs
from telecine.guidance import Guidance
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig
from telecine.upsampling import adain, tone_map

RANDOM = np.random.default_rng(0)
TOLD = Told(
    timesteps=np.array([0, 300, 750], np.float32),
    timestep=np.float32(750),
    audio_timestep=np.float32(640),
    sigma=np.float32(0.75),
    audio_sigma=np.float32(0.64),
)
SIGMAS = np.array([1.0, 0.9, 0.4], np.float32)
OFF = {"stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.parse(make_host(make_transformer(**NEWER)))


def request(**asked: Any) -> LTX2Request:
    return LTX2Request.resolve({"prompt": "a fox", "spatio_temporal_guidance_blocks": [1], **asked}, DEFAULTS)


def pair(*shape: int) -> AudioVideo:
    return AudioVideo(*(RANDOM.standard_normal((*shape, size), np.float32) for size in (4, 6)))


class TestGuidance:
    @pytest.mark.parametrize(
        ("asked", "passes"),
        [
            ({}, ("negative", "positive", "perturbed", "isolated")),
            (OFF, ("negative", "positive")),
            (OFF | {"guidance_scale": 1.0}, ("negative", "positive")),  # the sound's is 7
            (OFF | {"guidance_scale": 1.0, "audio_guidance_scale": 0}, ("positive",)),
            (OFF | {"audio_stg_scale": 0.5}, ("negative", "positive", "perturbed")),
            (OFF | {"modality_scale": 2.0}, ("negative", "positive", "isolated")),
        ],
    )
    def test_either_modality_asks_for_a_pass(self, host: Host, asked: Any, passes: Any) -> None:
        guidance = request_guidance(request(**asked), SIGMAS, host)
        assert guidance.passes == guidance.at(0).passes == passes

    def test_lists_are_for_steps(self, host: Host) -> None:
        guidance = request_guidance(
            request(**OFF, guidance_scale=[1, 4, 1], audio_guidance_scale=[0, 0, 2]), SIGMAS, host
        )
        assert [step.video.guidance for step in guidance.steps] == [1, 4, 1]
        assert [step.audio.guidance for step in guidance.steps] == [1, 4, 2]
        assert [len(step.passes) for step in guidance.steps] == [1, 2, 2]
        with pytest.raises(RequestError, match="audio_modality_scale has 2"):
            request_guidance(request(audio_modality_scale=[1, 2]), SIGMAS, host)

    @pytest.mark.parametrize("blocks", [[2], [-1]])
    def test_blocks_are_the_models(self, host: Host, blocks: list[int]) -> None:
        with pytest.raises(RequestError, match="indexes from 0 to 1"):
            request_guidance(request(spatio_temporal_guidance_blocks=blocks), SIGMAS, host)
        request_guidance(request(spatio_temporal_guidance_blocks=blocks, **OFF), SIGMAS, host)  # nothing asks for them

    def test_blocks_are_needed(self, host: Host) -> None:
        with pytest.raises(RequestError, match="without spatio_temporal_guidance_blocks"):
            request_guidance(request(spatio_temporal_guidance_blocks=[]), SIGMAS, host)

    def test_a_model_without_perturbed_attention_needs_no_such_pass(self) -> None:
        older = Host.parse(make_host(make_transformer()))
        guidance = request_guidance(request(spatio_temporal_guidance_blocks=[28]), SIGMAS, older)
        assert guidance.passes == ("negative", "positive", "isolated")

    def test_masks_are_of_their_passes_rows(self) -> None:
        step = StepGuidance(video=Scales(stg=1.0), audio=Scales(modality=2.0), stg_blocks=(0, 2))
        assert step.passes == ("positive", "perturbed", "isolated")
        mask = step.perturbation_mask(step.passes, 3, 2)
        assert mask.tolist() == [[1, 1, 0, 0, 1, 1], [1] * 6, [1, 1, 0, 0, 1, 1]]
        assert step.perturbation_mask(("positive",), 3, 2).tolist() == [[1, 1]] * 3
        assert modality_mask(step.passes, 2).tolist() == [1, 1, 1, 1, 0, 0]

    def test_modalities_do_not_mix(self) -> None:
        predictions = pair(4, 3)
        step = StepGuidance(video=Scales(guidance=2.0, rescale=0.5), audio=Scales())
        both = step.combine(predictions)
        np.testing.assert_array_equal(both.audio, predictions.audio[2:])
        changed = step.combine(predictions._replace(audio=predictions.audio * 2))
        np.testing.assert_array_equal(changed.video, both.video)


class TestTold:
    """The transformer's modulations get the timesteps that diffusers gives them."""

    @pytest.mark.parametrize("use_cross_timestep", [True, False])
    def test_cross_timesteps(self, use_cross_timestep: bool) -> None:
        transformer = make_transformer(**NEWER)
        seen: dict[str, np.ndarray] = {}
        for name, module in {
            "timestep": transformer.time_embed,
            "audio_timestep": transformer.audio_time_embed,
            "sigma": transformer.prompt_adaln,
            "audio_sigma": transformer.audio_prompt_adaln,
            "cross_timestep": transformer.av_cross_attn_video_scale_shift,
            "audio_cross_timestep": transformer.av_cross_attn_audio_scale_shift,
        }.items():
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].numpy().copy()}))
        rows = 2
        inputs = timestep_inputs(TOLD, rows, use_cross_timestep=use_cross_timestep)
        sigma, audio = (torch.full((rows,), float(each)) for each in (TOLD.timestep, TOLD.audio_timestep))
        with torch.no_grad():
            transformer(
                hidden_states=torch.zeros(rows, 3, 4),
                audio_hidden_states=torch.zeros(rows, 2, 4),
                encoder_hidden_states=torch.zeros(rows, 2, 16),
                audio_encoder_hidden_states=torch.zeros(rows, 2, 8),
                timestep=torch.from_numpy(np.repeat(TOLD.timesteps[np.newaxis], rows, axis=0)),
                audio_timestep=audio,
                sigma=sigma,
                audio_sigma=audio,
                num_frames=3,
                height=1,
                width=1,
                audio_num_frames=2,
                use_cross_timestep=use_cross_timestep,
            )
        for name, theirs in seen.items():
            np.testing.assert_array_equal(inputs[name].reshape(-1), theirs, err_msg=name)
        assert {name: each.shape for name, each in inputs.items()} == {
            "timestep": (2, 3),
            "audio_timestep": (2, 1),
            "sigma": (2,),
            "audio_sigma": (2,),
            "cross_timestep": (2, 1 if use_cross_timestep else 3),
            "audio_cross_timestep": (2, 1),
        }


class TestSchedule:
    CONFIG = FlowMatchEulerConfig(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )

    def test_distilled_sigmas_are_diffusers(self) -> None:
        assert list(DISTILLED_SIGMAS) == DISTILLED_SIGMA_VALUES
        assert list(SECOND_STAGE_SIGMAS) == STAGE_2_DISTILLED_SIGMA_VALUES

    @pytest.mark.parametrize("sigmas", [DISTILLED_SIGMAS, SECOND_STAGE_SIGMAS])
    def test_a_static_scheduler_keeps_given_sigmas(self, sigmas: Any) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=list(sigmas), mu=1.0)
        schedule = schedule_of(FlowMatchEulerConfig(), 5000, num_inference_steps=30, sigmas=sigmas)
        np.testing.assert_array_equal(schedule.sigmas, scheduler.sigmas.numpy())
        np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())

    def test_timesteps_stand_for_sigmas(self) -> None:
        schedule = schedule_of(self.CONFIG, 1024, num_inference_steps=30, timesteps=[1000, 500])
        assert schedule.timesteps.tolist() == [1000, 500]

    @pytest.mark.parametrize(
        ("asked", "words"),
        [({"sigmas": [1.0, 0.0]}, "begins at sigma 0"), ({"sigmas": [1.0], "timesteps": [1000]}, "one of")],
    )
    def test_what_has_no_velocity_is_refused(self, asked: Any, words: str) -> None:
        with pytest.raises(RequestError, match=words):
            schedule_of(FlowMatchEulerConfig(), 1024, num_inference_steps=2, **asked)


class TestSampler:
    def sampler(self, held: Held | None = None) -> AudioVideoSampler:
        config = FlowMatchEulerConfig()
        video, audio = (schedule_of(config, 3, num_inference_steps=1, sigmas=each) for each in ([0.8, 0.5], [0.6, 0.3]))
        return AudioVideoSampler(config=config, schedule=video, audio_schedule=audio, held=held)

    def test_velocities_and_clean_latents_are_each_others_inverse(self) -> None:
        latents, velocities = pair(1, 3), pair(2, 3)
        made = clean(velocities, latents, TOLD)
        for row in range(2):
            np.testing.assert_allclose(
                velocity(made.audio[row], latents.audio[0], TOLD.audio_sigma), velocities.audio[row], rtol=0, atol=1e-6
            )

    def test_the_last_step_lands_on_what_was_predicted(self) -> None:
        latents, predicted = pair(1, 3), pair(1, 3)
        for ours, theirs in zip(self.sampler().step(1, predicted, latents), predicted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)

    def test_each_modality_has_its_own_schedule(self) -> None:
        told = self.sampler().timesteps(0)
        assert (told.timestep, told.audio_timestep) == (np.float32(0.8) * 1000, np.float32(0.6) * 1000)
        assert told.timesteps.tolist() == [told.timestep]

    def test_what_is_held_is_told_cleaner_and_stays(self) -> None:
        latents = pair(2, 3)
        strengths = np.array([1, 0.5, 0], np.float32)
        sampler = self.sampler(Held(strengths=strengths, latents=latents.video[:1]))
        np.testing.assert_allclose(sampler.timesteps(0).timesteps, [0, 400, 800], rtol=1e-6)
        start = latents._replace(video=np.repeat(latents.video[:1], 2, axis=0))
        moved = sampler.step(0, pair(2, 3), start)
        np.testing.assert_array_equal(moved.video[:, 0], start.video[:, 0])
        assert np.abs(moved.video[:, 1:] - start.video[:, 1:]).min() > 1e-4

    def test_the_loop_takes_both_and_the_callback_may_replace_them(self) -> None:
        seen = []

        def callback(step: int, steps: int, sigma: float, latents: AudioVideo) -> Any:
            seen.append((step, steps, round(sigma, 3), type(latents)))
            return latents._replace(audio=np.zeros_like(latents.audio)) if step == 1 else None

        guidance = Guidance((StepGuidance(video=Scales(), audio=Scales()),) * 2)
        latents = pair(1, 3)
        sampler = self.sampler()
        steps = HostSteps(lambda latents, told, guided: latents, latents, sampler=sampler, guidance=guidance)
        done = denoise(steps, sampler.sigmas, callback)
        assert seen == [(0, 2, 0.8, AudioVideo), (1, 2, 0.5, AudioVideo)]
        assert isinstance(done, AudioVideo)
        assert not done.audio.any()
        np.testing.assert_allclose(done.video, latents.video, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("answer", [np.zeros((1, 3, 4), np.float32), (np.zeros((1, 3, 4), np.float32),)])
    def test_a_callback_returns_both_or_none(self, answer: Any) -> None:
        guidance = Guidance((StepGuidance(video=Scales(), audio=Scales()),) * 2)
        sampler = self.sampler()
        steps = HostSteps(lambda latents, *_: latents, pair(1, 3), sampler=sampler, guidance=guidance)
        with pytest.raises(RequestError, match=r"as many arrays as it was given, of shapes \(1, 3, 4\), \(1, 3, 6\)"):
            denoise(steps, sampler.sigmas, lambda *_: answer)


class TestUpsampling:
    """The statistics that LTX-2's upsampling pipeline restores are those that LTX-Video's does."""

    LATENTS, REFERENCE = (RANDOM.standard_normal((2, 4, 3, *size), np.float32) * 2 for size in ((4, 6), (2, 3)))

    @pytest.mark.parametrize("factor", [0.3, 1.0, -2.0])
    def test_adain(self, factor: float) -> None:
        theirs = LTX2LatentUpsamplePipeline.adain_filter_latent(
            None, torch.from_numpy(self.LATENTS), torch.from_numpy(self.REFERENCE), factor
        )
        np.testing.assert_allclose(adain(self.LATENTS, self.REFERENCE, factor), theirs.numpy(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("compression", [0.0, 0.6, 1.0])
    def test_tone_map(self, compression: float) -> None:
        theirs = LTX2LatentUpsamplePipeline.tone_map_latents(None, torch.from_numpy(self.LATENTS), compression)
        np.testing.assert_allclose(tone_map(self.LATENTS, compression), theirs.numpy(), rtol=0, atol=1e-6)
