"""What the pipelines of LTX-Video share: a request worked out, its denoising, its frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from telecine.conditioning import Conditioning
from telecine.denoise import Callback, denoise
from telecine.errors import EngineError, RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.bound import Transformer
from telecine.families.ltx_video.decode import decode
from telecine.families.ltx_video.guidance import request_guidance
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.memory import RunMemory
from telecine.families.ltx_video.sampler import FlowSampler
from telecine.families.ltx_video.text import without_padding
from telecine.families.steps import open_steps
from telecine.families.text import prompt_embeddings
from telecine.families.vae import DecodeSettings
from telecine.guidance import Guidance
from telecine.noise import Generator, second_stream
from telecine.request import Request
from telecine.rope import RopeTables
from telecine.schedulers.flow_match_euler import Schedule, calculate_shift, make_schedule, pipeline_sigmas
from telecine.shapes import LatentShape, VideoShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Draw = Callable[[list[Generator]], Array]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where a denoising starts: (B, T, C) latents, their tokens' positions, and what is kept of them.

    `draw_noise` draws the noise of a stochastic step from generators, one a video or one for all.
    """

    latents: Array
    rope: RopeTables
    conditioning: Conditioning
    draw_noise: Draw


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """A request as the pipelines of LTX-Video see it, all of it checked before a network is loaded."""

    models: Models
    request: Request
    host: Host
    video: VideoShape
    latent: LatentShape
    schedule: Schedule
    guidance: Guidance
    seeds: tuple[int, ...]
    generators: list[Generator]
    stochastic: list[Generator]  # the second streams of the seeds
    decoding: DecodeSettings
    memory: RunMemory

    @classmethod
    def prepare(
        cls, models: Models, request: Request, *, schedule: Callable[[Request, Host, LatentShape], Schedule]
    ) -> Generation:
        """
        Raises:
            RequestError: a parameter is wrong.
            EngineError: the bundle runs on engines, and there is none for this size.
        """
        host = Host.parse(models.host)
        video = _video_shape(request, host)
        latent = video.latent(host.grid)
        _check_engine(models, request, video, latent)
        planned = schedule(request, host, latent)
        guidance = request_guidance(request, planned.sigmas[:-1], host)
        memory = RunMemory.plan(models, request, host, latent, guidance)
        decoding = DecodeSettings.of(request, memory.decoding)
        seeds = request.seeds()
        models.expect(memory.needs, memory.tiling.memory_limit)
        return cls(
            models=models,
            request=request,
            host=host,
            video=video,
            latent=latent,
            schedule=planned,
            guidance=guidance,
            seeds=seeds,
            generators=[Generator(seed) for seed in seeds],
            stochastic=[second_stream(seed) for seed in seeds],
            decoding=decoding,
            memory=memory,
        )

    def given_latents(self, shape: tuple[int, ...], layout: str) -> Array:
        """The caller's latents, which must have this shape.

        Raises:
            RequestError: another shape, or values that are not finite.
        """
        latents = np.ascontiguousarray(self.request.latents, dtype=np.float32)
        if latents.shape != shape:
            raise RequestError(
                f"latents have shape {latents.shape}",
                expected=f"{shape}: {layout}",
                fix="Pass what output_type='latent' returns, or fit height, width and num_frames to them.",
            )
        if not np.isfinite(latents).all():
            raise RequestError("latents hold NaN or infinity", expected="finite numbers", fix="Look at what made them.")
        return latents

    def embed_prompts(self, stage: Stage, *, attend_pads: bool = True) -> tuple[Array, Array]:
        """(passes * B, L, D) embeddings and (passes * B, L) mask of the prompts."""
        with stage("text"):
            channels = self.host.text_channels
            return without_padding(
                *prompt_embeddings(self.models, self.request, channels, self.guidance, attend_pads=attend_pads)
            )

    def denoise(self, start: Start, prompts: tuple[Array, Array], *, stage: Stage, callback: Callback | None) -> Array:
        """(B, T, C) latents of the clip.

        Raises:
            Cancelled: the callback stopped the run.
        """
        draw_noise = partial(start.draw_noise, self.stochastic) if self.host.scheduler.stochastic_sampling else None
        sampler = FlowSampler(
            config=self.host.scheduler,
            schedule=self.schedule,
            conditioning=start.conditioning,
            draw_noise=draw_noise,
        )
        with stage("denoise"):
            transformer = Transformer(
                session=self.models.session("transformer"),
                latents_shape=start.latents.shape,
                tokens=start.latents.shape[1],
                passes=self.guidance.passes,
                rows=dict(zip(("encoder_hidden_states", "encoder_attention_mask"), prompts, strict=True)),
                constants={"rope_cos": start.rope.cos, "rope_sin": start.rope.sin, "rope_index": start.rope.index},
                output="velocity",
                timestep_axes=(start.conditioning.timestep_tokens,),
                blocks=self.host.transformer_blocks,
                one_by_one=self.memory.one_by_one,
            )
            with open_steps(
                self.models, transformer, start.latents, sampler=sampler, guidance=self.guidance, stage=stage
            ) as steps:
                return denoise(steps, sampler.sigmas, callback)

    def decode(self, latents: Array, stage: Stage) -> Output:
        """(B, C, F, H, W) normalised latents → (B, num_frames, height, width, 3) frames."""
        with stage("decode"):
            latents = self.host.denormalize(latents)
            frames = decode(self.models, self.host, latents, self.decoding, self.generators, self.stochastic)
        return Output(frames=frames, seeds=self.seeds)


def shifted_schedule(request: Request, host: Host, latent: LatentShape) -> Schedule:
    """The schedule of `LTXPipeline` and `LTXImageToVideoPipeline`.

    Given timesteps replace its sigmas (diffusers passes both, and fails there).
    """
    mu = calculate_shift(latent.tokens, host.scheduler)
    if request.timesteps is not None:
        return make_schedule(host.scheduler, timesteps=request.timesteps, mu=mu)
    return make_schedule(host.scheduler, sigmas=pipeline_sigmas(request.num_inference_steps), mu=mu)


def _check_engine(models: Models, request: Request, video: VideoShape, latent: LatentShape) -> None:
    """Refuse what the transformer's engine is too small for, before the text is encoded."""
    limits = models.limits("transformer")
    if limits is not None and (latent.tokens > limits["tokens"] or request.videos > limits["batch"]):
        workload = f"{video.width}x{video.height}x{video.num_frames}@b{request.videos}"
        raise EngineError(
            f"{workload} is {latent.tokens} tokens of {request.videos} videos, for which no engine was built",
            expected=f"at most {limits['tokens']} tokens in a batch of {limits['batch']}",
            fix=f"Run: telecine build BUNDLE --workload {workload} (beside those that are there), or use "
            "backend='onnxruntime'.",
        )


def _video_shape(request: Request, host: Host) -> VideoShape:
    shape = VideoShape.from_request(
        num_frames=request.num_frames, height=request.height, width=request.width, grid=host.grid
    )
    if shape.num_frames != request.num_frames:
        logger.warning(
            "num_frames %d is not %d*k+1: making %d frames", request.num_frames, host.grid.temporal, shape.num_frames
        )
    return shape
