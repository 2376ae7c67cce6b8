"""What the pipelines of LTX-2 share: a request worked out, its denoising, its frames and its sound."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.condition import Condition
from telecine.denoise import Callback, HostSteps, denoise
from telecine.errors import EngineError, RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx2 import conditions as conditions_module
from telecine.families.ltx2.audio import SLOWEST
from telecine.families.ltx2.conditions import Item
from telecine.families.ltx2.finish import clip, for_decoder
from telecine.families.ltx2.guidance import StepGuidance, request_guidance
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.memory import RunMemory, Size
from telecine.families.ltx2.modalities import AudioVideo
from telecine.families.ltx2.positions import rope_inputs
from telecine.families.ltx2.prompts import texts
from telecine.families.ltx2.request import LTX2Request
from telecine.families.ltx2.sampler import AudioVideoSampler, Held
from telecine.families.ltx2.schedule import schedule_of, static
from telecine.families.ltx2.sound import decode_sound
from telecine.families.ltx2.start import Draw, Given
from telecine.families.ltx2.transformer import BoundTransformer
from telecine.families.vae import DecodeSettings, decoded
from telecine.guidance import Guidance, Pass
from telecine.noise import Generator
from telecine.request import Request
from telecine.schedulers.flow_match_euler import Schedule
from telecine.shapes import LatentShape, VideoShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """A request as the pipelines of LTX-2 see it, all of it checked before a network is loaded."""

    models: Models
    request: LTX2Request
    host: Host
    video: VideoShape
    latent: LatentShape
    items: Sequence[Item]
    draw: Draw
    given: Given
    schedule: Schedule
    audio_schedule: Schedule
    guidance: Guidance[StepGuidance]
    seeds: tuple[int, ...]
    decoding: DecodeSettings
    memory: RunMemory

    @classmethod
    def prepare(
        cls, models: Models, request: Request, *, conditions: Sequence[Condition] = (), image: bool = False
    ) -> Generation:
        """`image`: one is encoded, to be the first frame.

        Raises:
            RequestError: a parameter is wrong, or a condition cannot be used.
            BundleError: the bundle lacks what the request needs.
            BackendError: Pillow or PyAV is needed and missing.
            EngineError: the bundle runs on engines, and there is none for this size.
        """
        assert isinstance(request, LTX2Request)
        host = Host.parse(models.host)
        video = _video_shape(request, host)
        latent = video.latent(host.grid)
        items = conditions_module.items(conditions, video, host.grid)
        if items or image:
            models.require("vae_encoder")
        size = _size(request, host, latent, items, image=image)
        _check_engine(models, request, video, size)
        _check_text_length(request, host)
        schedule, audio_schedule = _schedules(request, host, size.tokens)
        guidance = request_guidance(request, schedule.sigmas[:-1], host)
        memory = RunMemory.plan(models, request, host, size, guidance.passes)
        seeds = request.seeds()
        draw = _draw(request, host, size, seeds)
        given = Given.of(request, host, draw)
        models.expect(memory.needs, memory.tiling.memory_limit)
        return cls(
            models=models,
            request=request,
            host=host,
            video=video,
            latent=latent,
            items=items,
            draw=draw,
            given=given,
            schedule=schedule,
            audio_schedule=audio_schedule,
            guidance=guidance,
            seeds=seeds,
            decoding=DecodeSettings.of(request, memory.decoding),
            memory=memory,
        )

    def embed_prompts(self, stage: Stage) -> Mapping[Pass, AudioVideo]:
        """What the transformer attends to of each side's prompts."""
        with stage("text"):
            return texts(self.models, self.request, self.host, self.guidance.passes)

    def denoise(
        self,
        start: AudioVideo,
        held: Held | None,
        texts: Mapping[Pass, AudioVideo],
        *,
        stage: Stage,
        callback: Callback | None,
    ) -> AudioVideo:
        """(B, T, C) tokens of video and sound; the callback is given both, as an `AudioVideo`.

        Raises:
            Cancelled: the callback stopped the run.
        """
        host, request = self.host, self.request
        keyframes = [item.keyframe(host.grid) for item in self.items if item.index]
        rate = request.conditioning_frame_rate
        rope = rope_inputs(host.rope, self.latent, self.draw.audio_latents, rate, keyframes)
        sampler = AudioVideoSampler(
            config=host.scheduler, schedule=self.schedule, audio_schedule=self.audio_schedule, held=held
        )
        with (
            stage("denoise"),
            BoundTransformer(
                self.models.session("transformer"),
                texts,
                rope,
                start,
                host.transformer_blocks,
                use_cross_timestep=request.use_cross_timestep,
                stage=stage,
            ) as network,
        ):
            return denoise(HostSteps(network, start, sampler=sampler, guidance=self.guidance), sampler.sigmas, callback)

    def output(self, tokens: AudioVideo, stage: Stage) -> Output:
        """What is made of (B, T, C) tokens: frames and sound, or the latents of both, of their decoders' scale."""
        latents, audio_latents = clip(tokens.video, self.latent), self.host.denormalize_audio(tokens.audio)
        if self.request.output_type == "latent":
            latents = self.host.denormalize(latents)
            return Output(latents=latents, audio_latents=audio_latents, seeds=self.seeds)
        with stage("decode"):
            latents = for_decoder(self.host, latents, self.draw.generators, self.decoding.noise_scale)
            feeds = {"timestep": self.decoding.timestep} if self.host.timestep_conditioning else {}
            frames = decoded(self.models, self.host.grid, latents, feeds, self.decoding)
        with stage("sound"):  # whole before the first frame is: files want both side by side
            audio = decode_sound(self.models, audio_latents)
        return Output(frames=frames, audio=audio, sample_rate=self.host.audio_grid.sample_rate, seeds=self.seeds)


def _size(request: LTX2Request, host: Host, latent: LatentShape, items: Sequence[Item], *, image: bool) -> Size:
    lengths = [host.grid.latent_frames(item.pixels.shape[2]) for item in items]
    behind = [length for length, item in zip(lengths, items, strict=True) if item.index]
    return Size(
        latent=latent,
        keyframes=sum(behind),
        encoded=max([*lengths, int(image)], default=0),
        # diffusers counts the frames that were asked for, of which the video may have fewer.
        audio_latents=host.audio_grid.latents(request.num_frames, request.frame_rate),
    )


def _schedules(request: LTX2Request, host: Host, tokens: int) -> tuple[Schedule, Schedule]:
    """The video's steps and its sound's, both by the tokens of the video."""
    configs = (host.scheduler, host.audio_scheduler)
    video, sound = (
        schedule_of(
            config if request.shift_sigmas else static(config),
            tokens,
            num_inference_steps=request.num_inference_steps,
            sigmas=request.sigmas,
            timesteps=request.timesteps,
        )
        for config in configs
    )
    return video, sound


def _draw(request: LTX2Request, host: Host, size: Size, seeds: Sequence[int]) -> Draw:
    return Draw(
        generators=[Generator(seed) for seed in seeds],
        batch=request.videos,
        latent=size.latent,
        channels=host.latent_channels,
        audio_grid=host.audio_grid,
        audio_latents=size.audio_latents,
    )


def _check_text_length(request: LTX2Request, host: Host) -> None:
    given = request.embeds("prompt", host.text_channels)
    host.connectors.check_length(given[0].shape[1] if given else request.max_sequence_length)


def _check_engine(models: Models, request: LTX2Request, video: VideoShape, size: Size) -> None:
    """Refuse what the transformer's engine is too small for, before the text is encoded."""
    limits = models.limits("transformer") or {}
    sizes = {"batch": request.videos, "tokens": size.tokens, "audio_tokens": size.audio_latents}
    beyond = [symbol for symbol, each in sizes.items() if each > limits.get(symbol, each)]
    if beyond:
        workload = f"{video.width}x{video.height}x{video.num_frames}@b{request.videos}"
        raise EngineError(
            f"{workload} at {request.frame_rate:g} frames a second has "
            + ", ".join(f"{sizes[symbol]} {symbol}" for symbol in beyond),
            expected=f"at most {', '.join(f'{limits[symbol]} {symbol}' for symbol in beyond)}, by the engine",
            fix=f"Run: telecine build BUNDLE --workload {workload} (beside those that are there; for sound at "
            f"{SLOWEST:g} frames a second or more), or use backend='onnxruntime'.",
        )


def _video_shape(request: LTX2Request, host: Host) -> VideoShape:
    shape = VideoShape.from_request(
        num_frames=request.num_frames, height=request.height, width=request.width, grid=host.grid
    )
    if shape.num_frames != request.num_frames:
        logger.warning(
            "num_frames %d is not %d*k+1: making %d frames", request.num_frames, host.grid.temporal, shape.num_frames
        )
    if not host.audio_grid.latents(request.num_frames, request.frame_rate):
        raise RequestError(
            f"{request.num_frames} frames at {request.frame_rate:g} a second",
            expected="long enough for a latent of sound",
            fix="Ask for more frames, or a lower frame_rate.",
        )
    return shape
