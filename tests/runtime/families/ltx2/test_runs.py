"""Whole runs of telecine's math around diffusers' own transformer, against the pipelines of diffusers.

Here the transformer stands behind the inputs of telecine's graph, there it is diffusers'. What differs is the host's:
noise and its order, schedules, guidance, what is held, positions, and what the network is told. Latents are of order 1
and are compared as diffusers returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
)
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from doubles.ltx2 import NEWER, TorchSession, Vae, audio_text_channels, make_host, make_pipeline, make_transformer
from PIL import Image

from telecine import Condition
from telecine.denoise import HostSteps, denoise
from telecine.errors import RequestError
from telecine.families.ltx2 import conditions, finish, schedule
from telecine.families.ltx2 import transformer as transformer_module
from telecine.families.ltx2.guidance import StepGuidance, request_guidance
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.images import first_frame
from telecine.families.ltx2.modalities import AudioVideo
from telecine.families.ltx2.positions import Keyframe, rope_inputs
from telecine.families.ltx2.request import CONDITION_DEFAULTS, DEFAULTS, LTX2Request
from telecine.families.ltx2.sampler import AudioVideoSampler, Held
from telecine.families.ltx2.schedule import DISTILLED_SIGMAS, SECOND_STAGE_SIGMAS, schedule_of
from telecine.families.ltx2.start import Draw, Given, Placed, from_conditions, from_image, from_text
from telecine.families.ltx2.transformer import BoundTransformer, timestep_inputs
from telecine.latents import pack
from telecine.noise import Generator, randn
from telecine.shapes import VideoShape

# A few steps of float32 sums in another order: rescaling divides by deviations that torch sums in float32.
TOLERANCE = 2e-5
SIZE = {"height": 64, "width": 96, "num_frames": 17}
PLAIN: dict[str, Any] = {
    "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0,
}  # fmt: skip
GUIDANCES = {
    "plain": PLAIN,
    "defaults": {"spatio_temporal_guidance_blocks": [1]},
    "video alone": PLAIN | {"guidance_scale": 3.0, "audio_guidance_scale": 0, "guidance_rescale": 0.5},
    "sound alone": PLAIN | {"audio_stg_scale": 2.0, "spatio_temporal_guidance_blocks": [0, 1]},
    "isolated": PLAIN | {"modality_scale": 2.5, "audio_guidance_rescale": 0.9},
}
IMAGE = np.random.default_rng(5).integers(0, 256, (50, 120, 3), np.uint8)
VIDEO = np.random.default_rng(6).integers(0, 256, (11, 70, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def transformer() -> Any:
    return make_transformer(**NEWER)


@pytest.fixture(scope="module")
def text() -> dict[str, torch.Tensor]:
    """Embeddings of two prompts and of what they are not."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(2, 8)
    mask[0, :3] = 0
    return {
        "prompt_embeds": torch.randn(2, 8, 16, generator=generator),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.randn(2, 8, 16, generator=generator),
        "negative_prompt_attention_mask": mask.flip(0),
    }


@contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


class Run:
    """One request, on either side."""

    def __init__(self, transformer: Any, text: dict[str, torch.Tensor], batch: int, **asked: Any) -> None:
        self.transformer, self.batch = transformer, batch
        self.audio_scheduler: dict[str, Any] | None = None
        self.keyframes: list[Keyframe] = []
        self.text = {name: value[:batch] for name, value in text.items()}
        self.asked = {"num_inference_steps": 3, **SIZE, **asked}
        self.seeds = [7] if batch == 1 else [7, 8]

    def diffusers(self, pipeline: Any, **extra: Any) -> tuple[np.ndarray, np.ndarray]:
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        asked = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self.asked.items()
        }
        made = make_pipeline(pipeline, self.transformer)
        if self.audio_scheduler is not None:
            made.register_modules(audio_scheduler=FlowMatchEulerDiscreteScheduler(**self.audio_scheduler))
        video, audio = made(
            generator=generators if self.batch > 1 else generators[0],
            output_type="latent", return_dict=False, **self.text, **asked, **extra,
        )  # fmt: skip
        return video.numpy(), audio.numpy()

    def telecine(
        self, start: Callable[[Run], tuple[AudioVideo, Held | None]], defaults: Any = DEFAULTS
    ) -> tuple[np.ndarray, np.ndarray]:
        text = {name: value.numpy() for name, value in self.text.items()}
        self.request = LTX2Request.resolve(self.asked, text, {"seed": self.seeds}, defaults)
        self.host = Host.parse(make_host(self.transformer, audio_scheduler=self.audio_scheduler))
        video = VideoShape.from_request(**SIZE, grid=self.host.grid)
        self.latent = video.latent(self.host.grid)
        self.draw = Draw(
            generators=[Generator(seed) for seed in self.seeds],
            batch=self.batch,
            latent=self.latent,
            channels=self.host.latent_channels,
            audio_grid=self.host.audio_grid,
            audio_latents=self.host.audio_grid.latents(video.num_frames, self.request.frame_rate),
        )
        latents, held = start(self)
        schedules = [
            schedule_of(
                config,
                latents.video.shape[1],
                num_inference_steps=self.request.num_inference_steps,
                sigmas=self.request.sigmas,
            )
            for config in (self.host.scheduler, self.host.audio_scheduler)
        ]
        self.guidance = request_guidance(self.request, schedules[0].sigmas[:-1], self.host)
        sampler = AudioVideoSampler(
            config=self.host.scheduler, schedule=schedules[0], audio_schedule=schedules[1], held=held
        )
        rope = rope_inputs(
            self.host.rope, self.latent, self.draw.audio_latents, self.request.conditioning_frame_rate, self.keyframes
        )
        with BoundTransformer(
            TorchSession(self.transformer), self.texts(text), rope, latents, self.host.transformer_blocks,
            use_cross_timestep=self.request.use_cross_timestep, stage=untimed,
        ) as network:  # fmt: skip
            done = denoise(HostSteps(network, latents, sampler=sampler, guidance=self.guidance), sampler.sigmas)
        return self.host.denormalize(finish.clip(done.video, self.latent)), self.host.denormalize_audio(done.audio)

    def texts(self, text: dict[str, np.ndarray]) -> dict[Any, AudioVideo]:
        """What `doubles.ltx2.Connectors` makes of each side."""
        channels = audio_text_channels(self.transformer)
        sides = {"positive": text["prompt_embeds"], "negative": text["negative_prompt_embeds"]}
        return {
            side: AudioVideo(embeds, np.ascontiguousarray(embeds[..., :channels])) for side, embeds in sides.items()
        }

    def given(self) -> Given:
        return Given.of(self.request, self.host, self.draw)


def of_text(run: Run) -> tuple[AudioVideo, Held | None]:
    return from_text(run.draw, run.given(), run.request.share_of_noise(conditioned=False)), None


def of_image(run: Run) -> tuple[AudioVideo, Held | None]:
    encoded = None
    if run.request.latents is None:
        pixels = first_frame(IMAGE, run.request.height, run.request.width, 0)
        encoded = run.host.normalize_encoded(Vae().encode(torch.from_numpy(pixels)).latent_dist.mode().numpy())
    return from_image(run.draw, encoded, run.given(), run.request.share_of_noise(conditioned=False))


def of_conditions(*given: Condition) -> Callable[[Run], tuple[AudioVideo, Held | None]]:
    def start(run: Run) -> tuple[AudioVideo, Held | None]:
        grid = run.host.grid
        items = conditions.items(given, run.latent.video(grid), grid)
        placed: dict[bool, list[Placed]] = {True: [], False: []}
        for item in items:
            latents = Vae().encode(torch.from_numpy(item.pixels)).latent_dist.mode().numpy()
            tokens = pack(run.host.normalize_encoded(latents))
            placed[item.index == 0].append(Placed(tokens=tokens, strength=item.strength))
        run.keyframes = [item.keyframe(grid) for item in items if item.index]
        share = run.request.share_of_noise(conditioned=True)
        return from_conditions(run.draw, placed[True], placed[False], run.given(), share)

    return start


def check(got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def latents_of(batch: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(11)
    return {
        "latents": random.standard_normal((batch, 4, 3, 2, 3), np.float32),
        "audio_latents": random.standard_normal((batch, 2, 18, 2), np.float32),
    }


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("batch", [1, 2])
def test_text_to_video(transformer: Any, text: Any, name: str, batch: int) -> None:
    run = Run(transformer, text, batch, **GUIDANCES[name])
    expected = run.diffusers(LTX2Pipeline)
    check(run.telecine(of_text), expected)


@pytest.mark.parametrize("pipeline", [LTX2Pipeline, LTX2ImageToVideoPipeline, LTX2ConditionPipeline])
def test_the_second_stage_of_a_distilled_model(transformer: Any, text: Any, pipeline: Any) -> None:
    run = Run(
        transformer, text, 2, sigmas=list(SECOND_STAGE_SIGMAS), noise_scale=SECOND_STAGE_SIGMAS[0],
        **PLAIN, **latents_of(2),
    )  # fmt: skip
    expected = run.diffusers(pipeline)
    starts: Any = {LTX2Pipeline: of_text, LTX2ImageToVideoPipeline: of_image, LTX2ConditionPipeline: of_conditions()}
    check(run.telecine(starts[pipeline]), expected)


@pytest.mark.parametrize("name", ["latents", "audio_latents"])
def test_given_latents_must_fit(transformer: Any, text: Any, name: str) -> None:
    given = latents_of(1)
    given[name] = given[name][:, :, :-1]
    run = Run(transformer, text, 1, **PLAIN, **given)
    with pytest.raises(RequestError, match=f"{name} have shape"):
        run.telecine(of_text)


def test_given_latents_without_noise_still_draw(transformer: Any, text: Any) -> None:
    run = Run(transformer, text, 1, **PLAIN, latents=latents_of(1)["latents"])
    expected = run.diffusers(LTX2Pipeline)
    check(run.telecine(of_text), expected)  # the sound's noise comes after a draw that is used for nothing


@pytest.mark.parametrize("name", ["plain", "defaults"])
@pytest.mark.parametrize("batch", [1, 2])
def test_image_to_video(transformer: Any, text: Any, name: str, batch: int) -> None:
    run = Run(transformer, text, batch, **GUIDANCES[name])
    images = [Image.fromarray(IMAGE)] * batch
    expected = run.diffusers(LTX2ImageToVideoPipeline, image=images if batch > 1 else images[0], image_crf=0)
    check(run.telecine(of_image), expected)


@pytest.mark.parametrize("name", ["plain", "defaults"])
@pytest.mark.parametrize("batch", [1, 2])
def test_conditions(transformer: Any, text: Any, name: str, batch: int) -> None:
    run = Run(transformer, text, batch, **GUIDANCES[name], motion_speed=0.5)
    theirs = [
        LTX2VideoCondition(frames=Image.fromarray(IMAGE), index=0, strength=0.8, crf=0),
        LTX2VideoCondition(frames=VIDEO, index=1, strength=0.6),
        LTX2VideoCondition(frames=Image.fromarray(IMAGE), index=-1, strength=1.0, crf=0),
    ]
    ours = [
        Condition(image=IMAGE, strength=0.8, crf=0),
        Condition(video=VIDEO, frame_index=1, strength=0.6),
        Condition(image=IMAGE, index=-1, crf=0),
    ]
    expected = run.diffusers(LTX2ConditionPipeline, conditions=theirs)
    check(run.telecine(of_conditions(*ours), CONDITION_DEFAULTS), expected)


def test_conditions_on_given_latents(transformer: Any, text: Any) -> None:
    run = Run(transformer, text, 1, sigmas=list(SECOND_STAGE_SIGMAS), **PLAIN, **latents_of(1))
    theirs = [LTX2VideoCondition(frames=VIDEO, index=0, strength=0.7)]
    expected = run.diffusers(LTX2ConditionPipeline, conditions=theirs)
    check(run.telecine(of_conditions(Condition(video=VIDEO, strength=0.7)), CONDITION_DEFAULTS), expected)


def test_conditions_without_any_are_not_text_to_video(transformer: Any, text: Any) -> None:
    run = Run(transformer, text, 1, **PLAIN, sigmas=list(DISTILLED_SIGMAS)[4:])
    expected = run.diffusers(LTX2ConditionPipeline)
    check(run.telecine(of_conditions(), CONDITION_DEFAULTS), expected)
    assert np.abs(run.telecine(of_text)[0] - expected[0]).max() > 0.1


def test_a_model_of_2_0_is_told_its_own_timesteps_and_needs_no_perturbed_pass(text: Any) -> None:
    older = make_transformer(rope_type="interleaved")
    asked = {"use_cross_timestep": False, "spatio_temporal_guidance_blocks": [1]}
    run = Run(older, text, 1, **asked)
    expected = run.diffusers(LTX2ImageToVideoPipeline, image=Image.fromarray(IMAGE), image_crf=0)
    check(run.telecine(of_image), expected)
    assert run.guidance.passes == ("negative", "positive", "isolated")


def test_the_sound_may_have_a_scheduler_of_its_own(transformer: Any, text: Any) -> None:
    run = Run(transformer, text, 1, **PLAIN | {"guidance_scale": 2.0, "guidance_rescale": 0.5})
    run.audio_scheduler = {"shift": 3.0}
    theirs = [LTX2VideoCondition(frames=VIDEO, index=1, strength=0.7)]
    expected = run.diffusers(LTX2ConditionPipeline, conditions=theirs)
    check(run.telecine(of_conditions(Condition(video=VIDEO, index=1, strength=0.7)), CONDITION_DEFAULTS), expected)


def combined(change: Callable[[StepGuidance], StepGuidance]) -> Callable[[StepGuidance, AudioVideo], AudioVideo]:
    """Guidance of which something is left out, though the passes run."""
    combine = StepGuidance.combine

    def mutant(step: StepGuidance, predictions: AudioVideo) -> AudioVideo:
        rows = {each: index for index, each in enumerate(step.passes)}
        kept = change(step)
        batch = len(predictions.video) // len(step.passes)
        some = np.concatenate([np.arange(batch) + rows[each] * batch for each in kept.passes])
        return combine(kept, AudioVideo(predictions.video[some], predictions.audio[some]))

    return mutant


def of_both(**changes: float) -> Callable[[StepGuidance], StepGuidance]:
    return lambda step: replace(step, video=replace(step.video, **changes), audio=replace(step.audio, **changes))


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "the sound's noise drawn packed": (Draw, "audio", Draw.packed_audio),
    "the video's noise drawn packed": (Draw, "video", lambda draw: np.ascontiguousarray(
        randn(draw.generators, (draw.batch, draw.latent.tokens, draw.channels)).transpose(0, 2, 1)
    ).reshape(draw.latent.array_shape(draw.batch, draw.channels))),
    "no negative prompt": (StepGuidance, "combine", combined(of_both(guidance=1.0))),
    "no perturbed pass": (StepGuidance, "combine", combined(of_both(stg=0.0))),
    "no isolated pass": (StepGuidance, "combine", combined(of_both(modality=1.0))),
    "no rescaling": (StepGuidance, "combine", combined(of_both(rescale=0.0))),
    "the video's scales for the sound": (
        StepGuidance, "combine", combined(lambda step: replace(step, audio=step.video))
    ),
    "the shift of another size": (schedule, "calculate_shift", lambda tokens, config: 2.05),
    "another frame rate": (LTX2Request, "conditioning_frame_rate", property(lambda request: request.frame_rate + 1)),
    "what is held tells the sound": (
        transformer_module, "timestep_inputs",
        lambda told, rows, *, use_cross_timestep: timestep_inputs(told, rows, use_cross_timestep=False),
    ),
    "what is held told as the others": (
        Held, "timesteps", lambda held, timestep: np.full(len(held.strengths), timestep, np.float32)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_math_is_caught(transformer: Any, text: Any, monkeypatch: Any, name: str) -> None:
    held = "held" in name
    run = Run(transformer, text, 1, **GUIDANCES["defaults"])
    image = {"image": Image.fromarray(IMAGE), "image_crf": 0} if held else {}
    expected = run.diffusers(LTX2ImageToVideoPipeline if held else LTX2Pipeline, **image)
    where, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(where, attribute, mutant)
    got = run.telecine(of_image if held else of_text)
    worst = max(np.abs(ours - theirs).max() for ours, theirs in zip(got, expected, strict=True))
    assert worst > 100 * TOLERANCE
